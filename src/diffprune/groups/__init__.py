"""Which units of a denoiser can only be removed together."""

from diffprune.groups.block_groups import find_blocks, fixed_blocks, kept_blocks
from diffprune.groups.group import Count, Group, Slice, kept_indices
from diffprune.groups.group_finder import find_groups
from diffprune.groups.removal import remove_units

__all__ = [
    "Count",
    "Group",
    "Slice",
    "find_blocks",
    "find_groups",
    "fixed_blocks",
    "kept_blocks",
    "kept_indices",
    "remove_units",
]
