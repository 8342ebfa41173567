"""Gauss-Newton scores: squared derivatives of the output, instead of the loss, by a scale factor of each unit."""

from collections.abc import Sequence

from torch import nn

from diffprune.calibration.calibration_set import Calibration
from diffprune.criteria.score_pass import loss_details, needed
from diffprune.criteria.scores import Scores
from diffprune.criteria.unit_gradients import random_directions, unit_gradients
from diffprune.groups import Group
from diffprune.options import ScoringOptions
from diffprune.runs.accumulator import Accumulator


def gn_fisher(
    denoiser: nn.Module, groups: Sequence[Group], calibration: Calibration | None, options: ScoringOptions,
    sums: Accumulator,
) -> Scores:  # fmt: skip
    """Return the sum over images and timesteps of (sum of w * g over a unit's parameters)^2.

    g is the gradient of <v, output>, v ~ N(0, I). The mean over v is the diagonal of the Gauss-Newton matrix J^T J of
    the units' scale factors: the squared change of the output, to first order (Martens and Grosse, ICML 2015; the
    estimator is Hutchinson's).
    """
    images = needed(calibration)
    part = {g.name: sums.zeros(g.name, g.num_units) for g in groups}
    for by_group in unit_gradients(denoiser, groups, images, options, sums, random_directions(images, options)):
        for name, values in by_group.items():
            part[name] += values.square().sum(0)
    return Scores("gn-fisher", {name: sums.total(name) for name in part}, loss_details(sums))
