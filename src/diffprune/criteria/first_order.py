"""First-order scores: squared Taylor terms of single weights, with gradients summed over all timesteps."""

from collections.abc import Sequence

from torch import nn

from diffprune.calibration.calibration_set import Calibration
from diffprune.criteria.score_pass import summed_gradients
from diffprune.criteria.scores import Scores, sums_by_unit
from diffprune.groups import Group
from diffprune.options import ScoringOptions
from diffprune.runs.accumulator import Accumulator


def first_order(
    denoiser: nn.Module, groups: Sequence[Group], calibration: Calibration | None, options: ScoringOptions,
    sums: Accumulator,
) -> Scores:  # fmt: skip
    """Return the sum of (w * G)^2 over the conv and linear weights of a unit, G the gradient summed over all timesteps.

    Source: Molchanov et al., CVPR 2019, equation 8, applied to single weights.
    """
    gradients = summed_gradients(denoiser, groups, calibration, options, sums, threshold=0.0, norms=False)
    values = sums_by_unit(groups, denoiser, gradients.weights, lambda path: gradients.term(path).square())
    return Scores("first-order", values, gradients.details)
