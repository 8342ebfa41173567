"""Pruning criteria: one module per criterion, each a function that scores every unit of every group."""

from collections.abc import Callable, Sequence

from torch import nn

from diffprune.calibration.calibration_set import Calibration
from diffprune.criteria.absolute import absolute
from diffprune.criteria.bypass import bypass
from diffprune.criteria.cosine import cosine
from diffprune.criteria.diff_pruning import diff_pruning
from diffprune.criteria.first_order import first_order
from diffprune.criteria.fisher import fisher
from diffprune.criteria.gn_fisher import gn_fisher
from diffprune.criteria.magnitude import magnitude
from diffprune.criteria.obs import obs
from diffprune.criteria.random import random
from diffprune.criteria.scores import Scores
from diffprune.criteria.second_order import second_order
from diffprune.criteria.taylor import taylor
from diffprune.groups import Group
from diffprune.options import ScoringOptions
from diffprune.runs.accumulator import Accumulator

CRITERIA: dict[str, Callable[[nn.Module, Sequence[Group], Calibration | None, ScoringOptions, Accumulator], Scores]] = {
    "random": random,
    "magnitude": magnitude,
    "taylor": taylor,
    "diff-pruning": diff_pruning,
    "first-order": first_order,
    "second-order": second_order,
    "absolute": absolute,
    "fisher": fisher,
    "gn-fisher": gn_fisher,
    "obs": obs,
}

BLOCK_CRITERIA: dict[str, Callable[[nn.Module, Sequence[Group], Calibration, ScoringOptions, Accumulator], Scores]] = {
    "bypass": bypass,
    "cosine": cosine,
}
"""Criteria for whole blocks, in addition to `random`."""

__all__ = ["BLOCK_CRITERIA", "CRITERIA", "Scores"]
