"""Whole blocks as units: each list of equal blocks is a group."""

from collections.abc import Mapping, Sequence

from torch import nn

from diffprune.groups.group import Group
from diffprune.models.depth import block_lists, num_blocks


def find_blocks(denoiser: nn.Module) -> tuple[Group, ...]:
    """One group per list of blocks that the denoiser's config can shorten; empty for classes without such a list."""
    return tuple(Group(found.name, "blocks", num_blocks(denoiser, found), ()) for found in block_lists(denoiser))


def fixed_blocks(denoiser: nn.Module) -> Mapping[str, set[int]]:
    """Group name -> blocks that have to stay."""
    return {found.name: found.fixed(num_blocks(denoiser, found)) for found in block_lists(denoiser)}


def kept_blocks(groups: Sequence[Group], kept: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    """The part of a choice that shortens lists of blocks."""
    lists = {g.name: g.num_units for g in groups if g.kind == "blocks"}
    return {name: kept[name] for name, number in lists.items() if name in kept and len(kept[name]) < number}
