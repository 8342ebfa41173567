"""Groups derived from those before pruning equal those of a new trace of the pruned denoiser."""

from collections.abc import Callable, Mapping, Sequence

import pytest
from torch import nn

from diffprune.groups import Group, find_groups, reduced_groups, remove_units
from tests.conftest import text_unet, tiny_unet
from tests.zoo.tiny_configs import CONFIGS
from tests.zoo.zoo import tiny_model

TRANSFORMERS = (
    "DiTTransformer2DModel", "FluxTransformer2DModel", "Flux2Transformer2DModel", "LTXVideoTransformer3DModel",
    "SD3Transformer2DModel", "SanaTransformer2DModel", "Lumina2Transformer2DModel",
)  # fmt: skip


def every_third_removed(groups: Sequence[Group]) -> Mapping[str, tuple[int, ...]]:
    """Kept units: of each balanced part all but every third, so that at least two remain where there are three."""
    kept = {}
    for group in groups:
        size = group.num_units // group.balance
        removed = {u for u in range(group.num_units) if (u % size) % 3 == 1 and size > 2}
        kept[group.name] = tuple(u for u in range(group.num_units) if u not in removed)
    return kept


def check(denoiser: nn.Module, kinds: Sequence[str]) -> Mapping[str, Group]:
    groups = find_groups(denoiser, kinds=kinds)  # type: ignore[arg-type]
    kept = every_third_removed(groups)
    assert any(len(kept[g.name]) < g.num_units for g in groups)
    expected = {g.name: g for g in find_groups(remove_units(denoiser, groups, kept), kinds=kinds)}  # type: ignore
    reduced = reduced_groups(denoiser, groups, kept)
    assert {g.name: g for g in reduced.values()} == expected
    return reduced


@pytest.mark.parametrize(
    "make",
    [tiny_unet, lambda: tiny_unet(attention_head_dim=8), lambda: tiny_unet(layers_per_block=2), text_unet],
    ids=["one head", "heads", "deeper", "text-conditioned"],
)
def test_channels_heads_and_neurons_of_unets(make: Callable[[], nn.Module]) -> None:
    check(make(), ("channels", "heads", "neurons"))


def test_channels_beside_removed_blocks() -> None:
    reduced = check(text_unet(layers_per_block=3), ("channels", "heads", "neurons", "blocks"))
    assert any(name != group.name for name, group in reduced.items())


@pytest.mark.parametrize("name", [name for name in TRANSFORMERS if name in CONFIGS])
def test_heads_and_neurons_of_transformers(name: str) -> None:
    check(tiny_model(name), ("heads", "neurons"))


def test_a_group_keeps_its_last_unit() -> None:
    """A new trace takes an attention with one head for none, and finds no group there."""
    unet = tiny_unet(attention_head_dim=8)
    groups = [group for group in find_groups(unet) if group.kind == "heads"]
    reduced = reduced_groups(unet, groups, {group.name: (1,) for group in groups})
    assert {group.num_units for group in reduced.values()} == {1}
