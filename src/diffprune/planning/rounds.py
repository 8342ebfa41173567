"""Scores and allocation, in one step or in several with the scores recomputed on what is left."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from diffprune.criteria import CRITERIA, Scores
from diffprune.data.calibration import Calibration
from diffprune.groups import Group, find_groups, kept_indices
from diffprune.models.resize import shrink
from diffprune.models.state import borrowed
from diffprune.options import PlanOptions
from diffprune.planning.allocation import allocate

GONE = float("-inf")
"""Score of a unit that an earlier round has removed."""


@dataclass(frozen=True)
class Choice:
    """Group name -> units that stay; details: facts of the criterion, of the last round."""

    kept: dict[str, tuple[int, ...]]
    details: dict[str, Any]


def choose_units(
    denoiser: ModelMixin, groups: Sequence[Group], calibration: Calibration | None, options: PlanOptions
) -> Choice:
    """Score the units of a denoiser by `options.criterion` and choose which stay.

    With several rounds, round r of R reaches r / R of the ratio, on the scores of the model that the round before has
    left; a unit that is gone stays gone.
    """
    kept = {g.name: tuple(range(g.num_units)) for g in groups}
    details: dict[str, Any] = {}
    for number in range(1, options.rounds + 1):
        left = denoiser if number == 1 else shrink(denoiser, kept_indices(groups, kept, denoiser))
        scores = _score(left, groups if number == 1 else find_groups(left), calibration, options)
        details = dict(scores.details)
        kept = allocate(groups, _of_all(groups, kept, scores), options, progress=number / options.rounds)
    return Choice(kept, details)


def _score(
    denoiser: ModelMixin, groups: Sequence[Group], calibration: Calibration | None, options: PlanOptions
) -> Scores:
    assert options.criterion is not None
    criterion = CRITERIA[options.criterion]
    if calibration is None:
        return criterion(denoiser, groups, None, options)
    whole = denoiser if denoiser.dtype == torch.float32 else cast(Any, nn.Module).float(copy.deepcopy(denoiser))
    with borrowed(whole, calibration.clean.device, gradients=True):
        return criterion(whole, groups, calibration, options)


def _of_all(groups: Sequence[Group], kept: dict[str, tuple[int, ...]], scores: Scores) -> Scores:
    """Scores of the units that are left, at their places among all units."""
    values = {}
    for group in groups:
        values[group.name] = torch.full((group.num_units,), GONE, dtype=torch.float64)
        values[group.name][torch.tensor(kept[group.name])] = scores.values[group.name]
    return Scores(scores.criterion, values, scores.details)
