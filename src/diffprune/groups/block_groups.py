"""Whole blocks as units: each list of blocks is a group."""

from collections.abc import Mapping, Sequence

from torch import nn

from diffprune.architectures.depth.block_table import block_lists
from diffprune.groups.group import Group


def find_blocks(denoiser: nn.Module) -> tuple[Group, ...]:
    """One group per list of blocks that the denoiser's config can shorten; empty for classes without such a list."""
    return tuple(
        Group(found.name, "blocks", len(found.units), (), least=len(found.fixed) or (0 if found.may_empty else 1))
        for found in block_lists(denoiser)
    )


def fixed_blocks(denoiser: nn.Module) -> Mapping[str, frozenset[int]]:
    """Group name -> blocks that have to stay."""
    return {found.name: found.fixed for found in block_lists(denoiser)}


def kept_blocks(groups: Sequence[Group], kept: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    """The part of a choice that shortens lists of blocks."""
    lists = {g.name: g.num_units for g in groups if g.kind == "blocks"}
    return {name: kept[name] for name, number in lists.items() if name in kept and len(kept[name]) < number}
