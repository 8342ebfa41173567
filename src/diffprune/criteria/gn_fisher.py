"""Gauss-Newton Fisher scores: how much the output itself moves when a unit fades, whatever the target."""

from collections.abc import Sequence

import torch
from torch import nn

from diffprune.criteria.gradients import needed
from diffprune.criteria.scores import Scores
from diffprune.criteria.unit_gradients import random_directions, unit_gradients
from diffprune.data.calibration import Calibration
from diffprune.groups import Group
from diffprune.options import PlanOptions


def gn_fisher(
    denoiser: nn.Module, groups: Sequence[Group], calibration: Calibration | None, options: PlanOptions
) -> Scores:
    """Sum over images and timesteps of (sum of w * g over all parameters of a unit)^2, g of <v, output>, v ~ N(0, I).

    The mean over v is the diagonal of the Gauss-Newton matrix J^T J of factors before the units: the squared change of
    the output, to first order (Martens and Grosse, ICML 2015; the estimate is that of Hutchinson).
    """
    images = needed(calibration)

    total = {g.name: torch.zeros(g.num_units, dtype=torch.float64) for g in groups}
    details = {}
    for batch in unit_gradients(denoiser, groups, images, options, random_directions(images, options)):
        for name, values in batch.by_group.items():
            total[name] += values.square().sum(0)
        details = batch.losses.details()
    return Scores("gn-fisher", total, details)
