"""Criteria: how much each unit of each group matters. One file each, one signature."""

from collections.abc import Callable, Sequence

from torch import nn

from diffprune.criteria.diff_pruning import diff_pruning
from diffprune.criteria.magnitude import magnitude
from diffprune.criteria.random import random
from diffprune.criteria.scores import Scores
from diffprune.criteria.taylor import taylor
from diffprune.data.calibration import Calibration
from diffprune.groups import Group
from diffprune.options import PlanOptions

CRITERIA: dict[str, Callable[[nn.Module, Sequence[Group], Calibration | None, PlanOptions], Scores]] = {
    "random": random,
    "magnitude": magnitude,
    "taylor": taylor,
    "diff-pruning": diff_pruning,
}

__all__ = ["CRITERIA", "Scores", "diff_pruning", "magnitude", "random", "taylor"]
