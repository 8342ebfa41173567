"""Groups whose units are whole blocks: one group per list of blocks."""

from collections.abc import Mapping, Sequence

from torch import nn

from diffprune.architectures.depth.block_table import block_lists
from diffprune.groups.group import Group


def find_blocks(denoiser: nn.Module) -> tuple[Group, ...]:
    """Return one group per list of blocks that the config can shorten; empty for classes without such a list."""
    return tuple(
        Group(blocks.name, "blocks", len(blocks.units), (), least=len(blocks.fixed) or (0 if blocks.may_empty else 1))
        for blocks in block_lists(denoiser)
    )


def fixed_blocks(denoiser: nn.Module) -> Mapping[str, frozenset[int]]:
    """Return group name -> indices of blocks that cannot be removed."""
    return {blocks.name: blocks.fixed for blocks in block_lists(denoiser)}


def kept_blocks(groups: Sequence[Group], kept: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    """Select the kept units of the block groups that lose a block."""
    num_blocks = {g.name: g.num_units for g in groups if g.kind == "blocks"}
    return {name: kept[name] for name, num in num_blocks.items() if name in kept and len(kept[name]) < num}
