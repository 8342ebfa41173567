"""Fisher scores: squared derivatives of each image's loss by a scale factor of each unit."""

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
    """Return the sum over images and timesteps of (sum of w * g over a unit's parameters)^2, g of one image's loss.

    The inner sum is the derivative of that loss by a scale factor of the unit, so the score is the diagonal of the
    empirical Fisher information of these factors (Theis et al. 2018; Liu et al., ICML 2021).
    """
    part = {g.name: sums.zeros(g.name, g.num_units) for g in groups}
    for by_group in unit_gradients(denoiser, groups, needed(calibration), options, sums):
        for name, values in by_group.items():
            part[name] += values.square().sum(0)
    return Scores("fisher", {name: sums.total(name) for name in part}, loss_details(sums))
