"""Allocation: scores and a budget in, units to keep out."""

from collections.abc import Sequence

import torch

from diffprune.criteria import Scores
from diffprune.groups import Group

_ROUNDING = 1e-9
"""Absorbs the binary rounding of 1 - ratio, so that 0.9 of 100 units removes 90 and not 91."""


def allocate_uniform(groups: Sequence[Group], scores: Scores, ratio: float) -> dict[str, tuple[int, ...]]:
    """The published rule: every group loses the same share of its lowest-scored units.

    n = C - int(C * (1 - ratio)) units go from a group of C; where the group has balanced parts (norm groups),
    n // parts go from each part. At least one unit stays in each part. Source: Fang et al. 2023, DepGraph 2023.
    Returns group name -> units to keep, ascending.
    """
    kept = {}
    for group in groups:
        num_removed = group.num_units - int(group.num_units * (1 - ratio) + _ROUNDING)
        part_size = group.num_units // group.balance
        per_part = min(num_removed // group.balance, part_size - 1)
        by_part = scores.values[group.name].view(group.balance, part_size)
        order = by_part.argsort(dim=1, stable=True)[:, per_part:].sort(dim=1).values
        units = order + torch.arange(group.balance)[:, None] * part_size
        kept[group.name] = tuple(units.flatten().tolist())
    return kept
