"""The groups of a denoiser by kind of unit."""

from collections.abc import Collection

from torch import nn

from diffprune.groups.blocks import find_blocks
from diffprune.groups.finding import find_groups
from diffprune.groups.group import Group


def select_groups(denoiser: nn.Module, kinds: Collection[str] | None) -> tuple[Group, ...]:
    """Groups of units of the kinds asked for; None stands for all but whole blocks."""
    within = kinds is None or bool({*kinds} - {"blocks"})
    found = find_groups(denoiser) if within else ()
    narrow = tuple(group for group in found if kinds is None or group.kind in kinds)
    return (*narrow, *find_blocks(denoiser)) if kinds is not None and "blocks" in kinds else narrow
