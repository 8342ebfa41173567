"""Depth: a model with fewer blocks is a stock model and equals the whole one with those blocks bypassed."""

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
)
from torch import Tensor, nn

from diffprune.architectures.depth.block_table import block_lists
from diffprune.artifact.shorten import keep_blocks
from tests.conftest import text_unet
from tests.helpers.bypass import Bypass, bypass_blocks

_random = torch.Generator().manual_seed(1)
IMAGE, TEXT, POOLED = (torch.randn(shape, generator=_random) for shape in ((2, 4, 8, 8), (2, 5, 16), (2, 12)))
TOKENS, PLACES = (torch.randn(shape, generator=_random) for shape in ((2, 6, 4), (6, 3)))
TIMESTEP = torch.tensor([3, 7])


def dit() -> DiTTransformer2DModel:
    return DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=4, sample_size=8,
        patch_size=2, num_embeds_ada_norm=10,
    )  # fmt: skip


def pixart() -> PixArtTransformer2DModel:
    return PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=4, sample_size=8,
        patch_size=2, cross_attention_dim=16, caption_channels=16, use_additional_conditions=False,
    )  # fmt: skip


def sd3() -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=4, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=12, out_channels=4,
        pos_embed_max_size=8, dual_attention_layers=(1, 2), qk_norm="rms_norm",
    )  # fmt: skip


def flux() -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=3, num_single_layers=4, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=12, axes_dims_rope=(4, 4, 8), guidance_embeds=False,
    )  # fmt: skip


MODELS: dict[str, tuple[Callable[[], Any], dict[str, Tensor]]] = {
    "DiT": (dit, {"hidden_states": IMAGE, "timestep": TIMESTEP, "class_labels": torch.tensor([1, 2])}),
    "PixArt": (pixart, {"hidden_states": IMAGE, "timestep": TIMESTEP, "encoder_hidden_states": TEXT}),
    "SD3": (
        sd3,
        {
            "hidden_states": IMAGE,
            "timestep": TIMESTEP,
            "encoder_hidden_states": TEXT,
            "pooled_projections": POOLED,
        },
    ),
    "Flux": (
        flux,
        {
            "hidden_states": TOKENS,
            "timestep": torch.tensor([0.3, 0.7]),
            "encoder_hidden_states": TEXT,
            "pooled_projections": POOLED,
            "img_ids": PLACES,
            "txt_ids": torch.zeros(5, 3),
        },
    ),
}
UNEVEN = {"mid_block": [], "up_blocks.0.attentions.1.transformer_blocks": []}
LISTS = [*((name, "transformer_blocks") for name in MODELS), ("Flux", "single_transformer_blocks")]


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@torch.no_grad()
def output_of(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    result: Tensor = model.eval()(**inputs, return_dict=False)[0]
    return result


@pytest.mark.parametrize(("name", "path"), LISTS)
def test_the_shorter_model_equals_the_whole_one_with_the_block_bypassed(name: str, path: str) -> None:
    make, inputs = MODELS[name]
    whole = make()
    (blocks,) = [found for found in block_lists(whole) if found.name == path]
    num = len(blocks.units)
    for gone in sorted({0, 1, num - 1} - blocks.fixed):
        masked = copy.deepcopy(whole)
        bypass_blocks(masked, [f"{path}.{gone}"])
        small = keep_blocks(whole, {path: [i for i in range(num) if i != gone]})
        assert type(small) is type(whole)
        assert torch.equal(output_of(small, inputs), output_of(masked, inputs))
        assert not torch.equal(output_of(small, inputs), output_of(whole, inputs))


def test_blocks_that_the_forward_needs_have_to_stay() -> None:
    for make, gone in ((dit, 0), (sd3, 3)):
        with pytest.raises(ValueError, match=f"block {gone} of a {type(make()).__name__} cannot be removed"):
            keep_blocks(make(), {"transformer_blocks": [i for i in range(4) if i != gone]})


def test_dit_without_its_first_block_would_be_silently_wrong() -> None:
    """Its last norm takes the embedding of block 0: the stock model loads, and draws something else."""
    whole, inputs = dit(), MODELS["DiT"][1]
    masked, short = copy.deepcopy(whole), copy.deepcopy(whole)
    masked.transformer_blocks[0] = Bypass(masked.transformer_blocks[0])
    masked.transformer_blocks[0].norm1 = whole.transformer_blocks[0].norm1
    short.transformer_blocks = short.transformer_blocks[1:]
    assert not torch.allclose(output_of(masked, inputs), output_of(short, inputs), atol=1e-3)


def test_block_indices_in_a_config_move_up_and_the_old_ones_would_not_fit() -> None:
    small = keep_blocks(sd3(), {"transformer_blocks": [0, 2, 3]})
    assert list(small.config.dual_attention_layers) == [1]
    assert small.config.num_layers == 3


def test_a_number_of_blocks_that_was_left_to_its_default_is_shortened_too() -> None:
    config = {name: value for name, value in pixart().config.items() if name != "num_layers"}
    whole = PixArtTransformer2DModel.from_config(config)
    kept = range(0, whole.config.num_layers, 2)
    assert len(keep_blocks(whole, {"transformer_blocks": kept}).transformer_blocks) == len(kept)


def test_plain_diffusers_loads_a_shorter_model_where_diffprune_is_not_installed(tmp_path: Path) -> None:
    of_unet = {"sample": IMAGE, "timestep": TIMESTEP, "encoder_hidden_states": TEXT[..., :12]}
    for name, (make, inputs) in {**MODELS, "UNet": (text_unet, of_unet)}.items():
        whole = make()
        kept = {found.name: sorted({*range(len(found.units))[::2], *found.fixed}) for found in block_lists(whole)}
        kept |= UNEVEN if name == "UNet" else {}
        small = keep_blocks(whole, kept)
        small.save_pretrained(tmp_path / name)
        torch.save((type(small).__name__, inputs, output_of(small, inputs)), tmp_path / f"{name}.pt")
    code = """if True:
        import sys, pathlib
        sys.modules["diffprune"] = None
        import diffusers, torch
        for file in sorted(pathlib.Path(sys.argv[1]).glob("*.pt")):
            kind, inputs, expected = torch.load(file)
            model = getattr(diffusers, kind).from_pretrained(file.with_suffix(""))
            with torch.no_grad():
                assert torch.equal(model(**inputs, return_dict=False)[0], expected), kind
        print("all equal")
    """
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "all equal", done.stderr
