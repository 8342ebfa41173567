"""Pruned weights of other systems: the manifest is read from the shapes, and what shapes cannot explain is named."""

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor

import diffprune
from diffprune.conversion.pruned_shapes import from_shapes
from diffprune.errors import ModelError
from diffprune.pipelines.loading import load_model
from tests.conftest import tiny_pipeline, tiny_unet

CHANGES: dict[str, dict[str, Any]] = {
    "one head": {},
    "several heads": {"attention_head_dim": 8},
    "resampling in residual blocks": {"downsample_type": "resnet", "upsample_type": "resnet"},
}


@cache
def pruned(case: str) -> tuple[UNet2DModel, UNet2DModel]:
    """A denoiser and its pruned form."""
    stock = tiny_unet(**CHANGES[case])
    return stock, diffprune.prune(stock, diffprune.plan(stock, criterion="magnitude", ratio=0.5))


def outputs(model: torch.nn.Module) -> Tensor:
    noisy = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found: Tensor = model(noisy, torch.tensor([1, 15])).sample
    return found


@pytest.mark.parametrize("case", CHANGES)
def test_the_pruned_model_is_found_again(case: str, tmp_path: Path) -> None:
    stock, small = pruned(case)
    again = from_shapes(small.state_dict(), stock, heads=None, source="weights.pth")
    assert again.pruning.modules == small.pruning.modules
    assert torch.equal(outputs(again), outputs(small))
    again.save_pretrained(tmp_path)
    assert torch.equal(outputs(diffprune.UNet2DModel.from_pretrained(tmp_path)), outputs(small))


def test_an_architecture_without_weights_is_enough(tmp_path: Path) -> None:
    stock, small = pruned("one head")
    stock.save_config(tmp_path)
    again = from_shapes(small.state_dict(), load_model(tmp_path / "config.json").denoiser, heads=None, source="w")
    assert torch.equal(outputs(again), outputs(small))


def test_unpruned_weights_give_the_stock_class() -> None:
    stock = tiny_unet()
    again = from_shapes(stock.state_dict(), stock, heads=None, source="w")
    assert type(again) is UNet2DModel
    assert torch.equal(outputs(again), outputs(stock))


def narrower_heads(model: UNet2DModel) -> UNet2DModel:
    """Every attention keeps its heads and half of each head's width: not what our own surgery does."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if type(module).__name__ != "Attention":
            continue
        rows = torch.arange(module.to_q.out_features).unflatten(0, (module.heads, -1))[:, ::2].flatten()
        for layer in (module.to_q, module.to_k, module.to_v):
            layer.weight, layer.bias = (torch.nn.Parameter(p[rows]) for p in (layer.weight, layer.bias))
        module.to_out[0].weight = torch.nn.Parameter(module.to_out[0].weight[:, rows])
    return model


def test_heads_may_be_given_where_their_width_was_pruned(tmp_path: Path) -> None:
    stock = tiny_unet(attention_head_dim=8)
    torn = narrower_heads(stock)
    again = from_shapes(torn.state_dict(), stock, heads=4, source="w")
    assert torch.equal(outputs(again), outputs(torn))
    again.save_pretrained(tmp_path)
    assert torch.equal(outputs(diffprune.UNet2DModel.from_pretrained(tmp_path)), outputs(torn))
    guessed = from_shapes(torn.state_dict(), stock, heads=None, source="w")
    assert not torch.allclose(outputs(guessed), outputs(torn))  # the shapes alone do not tell


def test_a_found_model_can_be_pruned_again() -> None:
    stock, small = pruned("several heads")
    again = from_shapes(small.state_dict(), stock, heads=None, source="w")
    smaller = diffprune.prune(again, diffprune.plan(again, criterion="magnitude", ratio=0.5))
    assert outputs(smaller).shape == (2, 1, 16, 16)
    assert [step["criterion"] for step in smaller.pruning_provenance] == ["unknown", "magnitude"]


def cut(name: str, *index: slice) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.update({name: tensors[name][index].clone()})


DAMAGE: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "missing": (lambda t: t.pop("conv_in.bias"), r"1 missing: conv_in\.bias"),
    "unexpected": (lambda t: t.update({"head.weight": torch.zeros(2)}), r"1 unexpected: head\.weight"),
    "a wider layer": (
        lambda t: t.update({"conv_in.weight": torch.zeros(17, 1, 3, 3)}),
        r"conv_in\.weight \(got 17x1x3x3, stock 16x1x3x3\)",
    ),
    "another kernel": (cut("conv_in.weight", *[slice(None)] * 3, slice(1)), r"conv_in\.weight \(got 16x1x3x1"),
    "a bias of another width": (cut("conv_in.bias", slice(8)), r"conv_in\.bias \(got 8, stock 16\)"),
    "ragged norm groups": (
        lambda t: [cut(f"conv_norm_out.{end}", slice(15))(t) for end in ("weight", "bias")],
        r"conv_norm_out \(15 channels in 4 norm groups\)",
    ),
    "a scalar": (lambda t: t.update({"conv_in.bias": torch.tensor(1.0)}), r"conv_in\.bias \(got scalar, stock 16\)"),
    "a layer its neighbours do not follow": (
        lambda t: [cut(f"time_embedding.linear_1.{end}", slice(32))(t) for end in ("weight", "bias")],
        r"time_embedding\.linear_2 does not fit the output of the previous layers",
    ),
    "heads cut apart": (
        lambda t: (
            [
                cut(f"mid_block.attentions.0.to_{part}.{end}", slice(20))(t)
                for part in "qkv"
                for end in ("weight", "bias")
            ]
            and cut("mid_block.attentions.0.to_out.0.weight", slice(None), slice(20))(t)
        ),
        r"mid_block\.attentions\.0: its 20 rows cannot be divided into heads of 8; pass it with --heads",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_what_shapes_cannot_explain_is_named(case: str) -> None:
    change, expected = DAMAGE[case]
    stock = tiny_unet(attention_head_dim=8)
    tensors = dict(stock.state_dict())
    change(tensors)
    with pytest.raises(ModelError, match=expected):
        from_shapes(tensors, stock, heads=None, source="w")


def test_a_number_of_heads_that_does_not_divide_is_refused() -> None:
    stock, small = pruned("several heads")
    with pytest.raises(ModelError, match=r"cannot be divided into rows for each of 5 heads"):
        from_shapes(small.state_dict(), stock, heads=5, source="w")


def test_a_pipeline_keeps_its_other_parts(tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    _, small = pruned("one head")
    pipeline.save_pretrained(tmp_path / "original")
    torch.save([small.state_dict(), {}, 3, 4], tmp_path / "model.pth")
    again = diffprune.convert("shapes", tmp_path / "model.pth", arch=str(tmp_path / "original"))
    assert again.scheduler.config.num_train_timesteps == 20
    assert torch.equal(outputs(again.unet), outputs(small))
