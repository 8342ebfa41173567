"""Surgery against torch-pruning's own, and properties that need no reference."""

import copy

import pytest
import torch
import torch_pruning
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import nn

import diffprune
from diffprune.artifact.slicing import shrink
from diffprune.errors import ModelError, PlanError
from diffprune.groups import Group, find_groups, kept_indices
from diffprune.pruning.surgery import rescale
from tests.conftest import tiny_pipeline, tiny_unet

VARIANTS = {
    "one head": {},
    "heads": {"attention_head_dim": 8},
    "scale and shift": {"resnet_time_scale_shift": "scale_shift"},
    "two layers": {"layers_per_block": 2},
    "resnet sampling": {"downsample_type": "resnet", "upsample_type": "resnet"},
    "resnet blocks": {
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    },
    "classes": {"num_class_embeds": 10},
}


def random_kept(group: Group, generator: torch.Generator) -> list[int]:
    """A random choice that removes a quarter of every balanced part, at least one unit."""
    size = group.num_units // group.balance
    kept: list[int] = []
    for part in range(group.balance):
        order = torch.randperm(size, generator=generator)[max(1, size // 4) :]
        kept += sorted((order + part * size).tolist())
    return kept


def inputs_of(model: nn.Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = {"sample": torch.randn(2, 1, 16, 16, generator=generator), "timestep": torch.tensor([3, 15])}
    return inputs | ({"class_labels": torch.tensor([1, 7])} if model.config.num_class_embeds else {})


def pruned_by_torch_pruning(model: nn.Module, groups: tuple[Group, ...], kept: dict[str, list[int]]) -> nn.Module:
    """The same units removed by torch-pruning, group by group; only numbers of heads are set by hand."""
    reference = copy.deepcopy(model)
    graph = torch_pruning.DependencyGraph().build_dependency(reference, inputs_of(model))
    for group in groups:
        root = reference.get_submodule(group.name)
        place = next(s for s in group.slices if s.module == group.name and s.dim == "out")
        removed = [u for u in range(group.num_units) if u not in kept[group.name]]
        rows = [place.start + u * place.width + k for u in removed for k in range(place.width)]
        prune = torch_pruning.prune_conv_out_channels if isinstance(root, nn.Conv2d) else None
        prune = prune or torch_pruning.prune_linear_out_channels
        graph.get_pruning_group(root, prune, rows).prune()
        if group.kind == "heads":
            reference.get_submodule(group.name.rpartition(".")[0]).heads = len(kept[group.name])
    return reference


@pytest.mark.parametrize("variant", VARIANTS)
def test_surgery_equals_torch_prunings_own(variant: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_unet(**VARIANTS[variant])
    generator = torch.Generator().manual_seed(0)
    groups = find_groups(model)
    if variant == "scale and shift":  # torch-pruning removes scale and shift rows apart when rooted at the wider layer
        groups = tuple(g for g in groups if len({s.start for s in g.slices}) == 1)
    kept = {g.name: random_kept(g, generator) for g in groups}
    small = shrink(model, kept_indices(groups, kept, model))
    reference = pruned_by_torch_pruning(model, groups, kept)
    for (name, ours), theirs in zip(small.state_dict().items(), reference.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    for ours, theirs in zip(small.modules(), reference.modules(), strict=True):  # torch-pruning leaves these behind
        if type(theirs).__name__ in ("Downsample2D", "Upsample2D"):
            theirs.channels = ours.channels
    with torch.no_grad():
        assert torch.equal(small(**inputs_of(model)).sample, reference(**inputs_of(model)).sample)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_pruned_saved_and_loaded(variant: str, tmp_path: object) -> None:
    model = tiny_unet(**VARIANTS[variant])
    small = diffprune.prune(model, diffprune.plan(model, criterion="magnitude", ratio=0.5))
    small.save_pretrained(tmp_path)
    again = diffprune.UNet2DModel.from_pretrained(tmp_path)
    assert small.num_parameters() < 0.5 * model.num_parameters()
    with torch.no_grad():
        assert torch.equal(small(**inputs_of(model)).sample, again(**inputs_of(model)).sample)


def test_removing_units_with_zero_outgoing_weights_leaves_the_output_as_it_was() -> None:
    model = tiny_unet(attention_head_dim=8)
    groups = [g for g in find_groups(model) if g.kind == "heads" or g.name.startswith("time_embedding.linear_1")]
    assert len(groups) > 1
    kept = {g.name: list(range(0, g.num_units, 2)) for g in groups}
    with torch.no_grad():
        for group in groups:
            for part in (s for s in group.slices if s.dim == "in"):
                weight = model.get_submodule(part.module).weight
                for unit in set(range(group.num_units)) - set(kept[group.name]):
                    weight[:, part.start + unit * part.width : part.start + (unit + 1) * part.width] = 0
        small = shrink(model, kept_indices(groups, kept, model))
        difference = small(**inputs_of(model)).sample - model(**inputs_of(model)).sample
    assert difference.abs().max() < 1e-6


def test_rescaled_queries_weigh_as_if_the_missing_channels_were_zero() -> None:
    """One-head attention at half its width: exact with the factor, for both kinds of processors, and not without."""
    unet = tiny_unet()
    (group,) = [g for g in find_groups(unet) if g.name == "mid_block.attentions.0.to_q"]
    kept = {group.name: list(range(0, group.num_units, 2))}
    masked = copy.deepcopy(unet)
    gone = [u for u in range(group.num_units) if u not in kept[group.name]]
    attention = masked.mid_block.attentions[0]
    with torch.no_grad():
        for layer in (attention.to_q, attention.to_k, attention.to_v):
            layer.weight[gone], layer.bias[gone] = 0.0, 0.0
        plain = shrink(unet, kept_indices([group], kept, unet))
        scaled = copy.deepcopy(plain)
        assert rescale(unet, scaled) == ["mid_block.attentions.0"]
        expected = masked(**inputs_of(unet)).sample
        for processor in (AttnProcessor(), AttnProcessor2_0()):
            for model in (plain, scaled):
                model.mid_block.attentions[0].set_processor(processor)
            assert torch.allclose(scaled(**inputs_of(unet)).sample, expected, atol=1e-6)
            assert not torch.allclose(plain(**inputs_of(unet)).sample, expected, atol=1e-6)


def test_the_original_is_untouched_and_other_components_are_shared() -> None:
    pipeline = tiny_pipeline()
    before = copy.deepcopy(pipeline.unet.state_dict())
    small = diffprune.prune(pipeline, diffprune.plan(pipeline, criterion="random", ratio=0.5))
    assert type(small) is type(pipeline)
    assert small.scheduler is pipeline.scheduler
    assert small.unet is not pipeline.unet
    assert all(torch.equal(value, before[name]) for name, value in pipeline.unet.state_dict().items())
    assert type(pipeline.unet).__module__.startswith("diffusers")


def test_a_pruned_model_can_be_pruned_again_and_manifests_compose(tmp_path: object) -> None:
    model = tiny_unet()
    once = diffprune.prune(model, diffprune.plan(model, criterion="magnitude", ratio=0.25))
    twice = diffprune.prune(once, diffprune.plan(once, criterion="random", ratio=0.4))
    assert [step["criterion"] for step in twice.pruning.provenance] == ["magnitude", "random"]
    assert [step["criterion"] for step in once.pruning.provenance] == ["magnitude"]
    twice.save_pretrained(tmp_path)
    again = diffprune.UNet2DModel.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(twice(**inputs_of(model)).sample, again(**inputs_of(model)).sample)
    assert again.pruning == twice.pruning


def test_reinit_draws_fresh_weights_by_seed() -> None:
    model = tiny_unet()
    plan = diffprune.plan(model, criterion="random", ratio=0.5)
    one, same, other = (diffprune.prune(model, plan, reinit=True, seed=s).state_dict() for s in (0, 0, 1))
    sliced = diffprune.prune(model, plan).state_dict()
    name = "conv_in.weight"
    assert torch.equal(one[name], same[name])
    assert not torch.equal(one[name], other[name])
    assert not torch.equal(one[name], sliced[name])
    assert one[name].shape == sliced[name].shape


def test_an_architecture_without_weights_is_pruned_only_with_reinit() -> None:
    model = diffprune.pipelines.architecture_configs.architecture("ddpm-digits")
    plan = diffprune.plan(model, ratio=0.5)
    with pytest.raises(ModelError, match="without weights"):
        diffprune.prune(model, plan)
    small = diffprune.prune(model, plan, reinit=True)
    with torch.no_grad():
        assert torch.isfinite(small(**inputs_of(model)).sample).all()


def test_a_plan_for_another_model_is_refused() -> None:
    plan = diffprune.plan(tiny_unet(), criterion="random")
    with pytest.raises(PlanError, match="another model"):
        diffprune.prune(tiny_unet(layers_per_block=2), plan)


def test_a_plan_that_breaks_a_norm_group_is_refused() -> None:
    model = tiny_unet()
    plan = diffprune.plan(model, criterion="random", ratio=0.25)
    units = plan.groups["conv_in"].model_copy(update={"kept": plan.groups["conv_in"].kept[1:]})
    broken = plan.model_copy(update={"groups": {**plan.groups, "conv_in": units}})
    with pytest.raises(PlanError, match="norm groups must keep the same number"):
        diffprune.prune(model, broken)
