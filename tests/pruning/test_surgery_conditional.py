"""Denoisers with cross-attention: surgery against torch-pruning's own, saving, pipelines."""

import copy
from pathlib import Path

import pytest
import torch
import torch_pruning
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    VQModel,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import diffprune
from diffprune.architectures.families import family_of
from diffprune.artifact.slicing import shrink
from diffprune.groups import Group, find_groups, kept_indices
from diffprune.pipelines.class_conditional import ClassConditionalLDMPipeline, ClassEmbedding

CONFIG = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 12,
}
ADDED = {
    "down_block_types": ("SimpleCrossAttnDownBlock2D", "ResnetDownsampleBlock2D"),
    "up_block_types": ("ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "resnet_time_scale_shift": "scale_shift",
    "attention_head_dim": 4,
}
VARIANTS = {
    "SD 1": {"attention_head_dim": 4},
    "SD 2": {"attention_head_dim": (2, 4), "use_linear_projection": True},
    "SDXL": {
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "transformer_layers_per_block": (2, 1),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 58,
    },
    "one head, as cin256-v2": {"attention_head_dim": 1},
    "added keys and values, as IF": ADDED,
}


def conditional_unet(**changes: object) -> UNet2DConditionModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DConditionModel(**{**CONFIG, **changes}).eval()


def inputs_of(model: nn.Module) -> dict[str, object]:
    """The example inputs of the class, with random values."""
    generator = torch.Generator().manual_seed(1)
    inputs = family_of(model).example_inputs(model, 2, torch.device("cpu"))

    def drawn(value: object) -> object:
        if isinstance(value, dict):
            return {k: drawn(v) for k, v in value.items()}
        assert isinstance(value, Tensor)
        return torch.randn(value.shape, generator=generator) if value.is_floating_point() else value + 3

    return {name: drawn(value) for name, value in inputs.items()}


def output_of(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**inputs_of(model)).sample
    return found


def ragged(group: Group, generator: torch.Generator) -> list[int]:
    """A random choice: between a quarter and a half of every balanced part goes, at least one unit."""
    size = group.num_units // group.balance
    share = torch.rand((), generator=generator).item() / 4 + 0.25
    kept: list[int] = []
    for part in range(group.balance):
        order = torch.randperm(size, generator=generator)[min(max(1, int(size * share)), size - 1) :]
        kept += sorted((order + part * size).tolist())
    return kept


def pruned_by_torch_pruning(model: nn.Module, groups: tuple[Group, ...], kept: dict[str, list[int]]) -> nn.Module:
    reference = copy.deepcopy(model)
    graph = torch_pruning.DependencyGraph().build_dependency(reference, inputs_of(model))
    for group in groups:
        root = reference.get_submodule(group.name)
        place = next(s for s in group.slices if s.module == group.name and s.dim == "out")
        removed = [u for u in range(group.num_units) if u not in kept[group.name]]
        rows = [place.start + u * place.width + k for u in removed for k in range(place.width)]
        conv, linear = torch_pruning.prune_conv_out_channels, torch_pruning.prune_linear_out_channels
        graph.get_pruning_group(root, conv if isinstance(root, nn.Conv2d) else linear, rows).prune()
        for count in group.counts:
            if count.attribute == "heads":
                reference.get_submodule(count.module).heads = len(kept[group.name])
    return reference


@pytest.mark.parametrize("variant", [v for v in VARIANTS if not v.startswith("added")])
def test_surgery_equals_torch_prunings_own(variant: str) -> None:
    model = conditional_unet(**VARIANTS[variant])
    groups = find_groups(model)
    kinds = {"channels", "neurons"} | ({"heads"} if "one head" not in variant else set())
    assert {group.kind for group in groups} == kinds
    generator = torch.Generator().manual_seed(0)
    kept = {group.name: ragged(group, generator) for group in groups}
    small = shrink(model, kept_indices(groups, kept, model))
    reference = pruned_by_torch_pruning(model, groups, kept)
    for (name, ours), theirs in zip(small.state_dict().items(), reference.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    for ours, theirs in zip(small.modules(), reference.modules(), strict=True):  # torch-pruning leaves these behind
        if type(theirs).__name__ in ("Downsample2D", "Upsample2D"):
            theirs.channels = ours.channels
    assert torch.equal(output_of(small), output_of(reference))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_pruned_saved_and_loaded(variant: str, tmp_path: Path) -> None:
    model = conditional_unet(**VARIANTS[variant])
    small = diffprune.prune(model, diffprune.plan(model, criterion="magnitude", ratio=0.5))
    small.save_pretrained(tmp_path)
    again = diffprune.UNet2DConditionModel.from_pretrained(tmp_path)
    assert small.num_parameters() < 0.5 * model.num_parameters()
    assert torch.equal(output_of(small), output_of(again))
    assert again.pruning == small.pruning


def test_the_channels_of_a_transformer_block_are_one_group_with_those_of_its_projections() -> None:
    group = next(g for g in find_groups(conditional_unet(**VARIANTS["SD 1"])) if g.name.endswith("0.proj_in"))
    block = group.name.removesuffix("proj_in") + "transformer_blocks.0."
    assert {"norm1", "norm2", "norm3", "attn1.to_out.0", "attn2.to_out.0", "ff.net.2"} <= {
        part.module.removeprefix(block) for part in group.slices if part.dim == "out"
    }


def test_a_pruned_class_conditional_pipeline_draws_the_same_after_loading(tmp_path: Path) -> None:
    unet = conditional_unet(in_channels=3, out_channels=3, attention_head_dim=1)
    layers = {"block_out_channels": (8,), "norm_num_groups": 4, "num_vq_embeddings": 12, "latent_channels": 3}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = ClassConditionalLDMPipeline(
            VQModel(**layers), unet, ClassEmbedding(num_classes=5, dim=12), DDIMScheduler()
        )
    small = diffprune.prune(pipeline, diffprune.plan(pipeline, criterion="magnitude", ratio=0.3))
    small.save_pretrained(tmp_path)
    assert type(small.unet).__module__ == "diffprune"
    images = []
    for pipe in (small, ClassConditionalLDMPipeline.from_pretrained(tmp_path), diffprune.load_pipeline(tmp_path)):
        pipe.set_progress_bar_config(disable=True)
        drawn = pipe([1, 4], num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt")
        images.append(drawn.images)
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])


def test_a_stable_diffusion_pipeline_with_a_pruned_unet_draws_the_same_after_loading(tmp_path: Path) -> None:
    unet = conditional_unet(attention_head_dim=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
        size = {"hidden_size": 12, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
        text_encoder = CLIPTextModel(CLIPTextConfig(vocab_size=4, bos_token_id=0, eos_token_id=1, **size)).eval()
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2, "b</w>": 3}
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=7),
        unet=unet,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    small = diffprune.prune(pipeline, diffprune.plan(pipeline, criterion="magnitude", ratio=0.3))
    small.save_pretrained(tmp_path)
    images = []
    for pipe in (small, DiffusionPipeline.from_pretrained(tmp_path), diffprune.load_pipeline(tmp_path)):
        pipe.set_progress_bar_config(disable=True)
        drawn = pipe(
            "a b",
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        )
        images.append(drawn.images)
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])
