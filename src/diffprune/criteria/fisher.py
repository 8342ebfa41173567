"""Fisher scores: how much the loss of single images moves when a unit fades."""

from collections.abc import Sequence

import torch
from torch import nn

from diffprune.criteria.gradients import needed
from diffprune.criteria.scores import Scores
from diffprune.criteria.unit_gradients import unit_gradients
from diffprune.data.calibration import Calibration
from diffprune.groups import Group
from diffprune.options import PlanOptions


def fisher(
    denoiser: nn.Module, groups: Sequence[Group], calibration: Calibration | None, options: PlanOptions
) -> Scores:
    """Sum over images and timesteps of (sum of w * g over all parameters of a unit)^2, g of one image's loss.

    The sum inside is the derivative of that loss by a factor before the whole unit, so this is the diagonal of
    the empirical Fisher information of such factors (Theis et al. 2018; Liu et al., ICML 2021).
    """
    total = {g.name: torch.zeros(g.num_units, dtype=torch.float64) for g in groups}
    batches = unit_gradients(denoiser, groups, needed(calibration), options)
    details = {}
    for batch in batches:
        for name, values in batch.by_group.items():
            total[name] += values.square().sum(0)
        details = batch.losses.details()
    return Scores("fisher", total, details)
