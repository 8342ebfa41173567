"""Fisher scores: how much the loss of single images moves when a unit fades."""

from collections.abc import Sequence

from torch import nn

from diffprune.calibration.calibration_set import Calibration
from diffprune.criteria.score_pass import loss_details, needed
from diffprune.criteria.scores import Scores
from diffprune.criteria.unit_gradients import unit_gradients
from diffprune.groups import Group
from diffprune.options import ScoringOptions
from diffprune.runs.accumulator import Accumulator


def fisher(
    denoiser: nn.Module, groups: Sequence[Group], calibration: Calibration | None, options: ScoringOptions,
    sums: Accumulator,
) -> Scores:  # fmt: skip
    """Sum over images and timesteps of (sum of w * g over all parameters of a unit)^2, g of one image's loss.

    The sum inside is the derivative of that loss by a factor before the whole unit, so this is the diagonal of
    the empirical Fisher information of such factors (Theis et al. 2018; Liu et al., ICML 2021).
    """
    part = {g.name: sums.zeros(g.name, g.num_units) for g in groups}
    for by_group in unit_gradients(denoiser, groups, needed(calibration), options, sums):
        for name, values in by_group.items():
            part[name] += values.square().sum(0)
    return Scores("fisher", {name: sums.total(name) for name in part}, loss_details(sums))
