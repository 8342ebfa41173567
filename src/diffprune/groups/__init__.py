"""Groups of units: which parts of a denoiser pruning can remove.

A unit is the smallest part that pruning removes: one channel, one attention head, one feed-forward neuron or one
block. Removing it removes its rows and columns from several layers at once. A group is the set of all units of one
kind at one place, such as the heads of one attention or the channels of one residual stream: its units are
interchangeable, lie in the same layers, and are scored and counted together. A plan keeps some units of each group.
"""

from diffprune.groups.block_groups import find_blocks, fixed_blocks, kept_blocks
from diffprune.groups.group import Count, Group, Slice, kept_indices
from diffprune.groups.group_finder import find_groups
from diffprune.groups.reduced_groups import reduced_groups
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
    "reduced_groups",
    "remove_units",
]
