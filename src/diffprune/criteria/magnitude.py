"""Magnitude scores: the squared weights of a unit."""

from collections.abc import Sequence

from torch import nn

from diffprune.calibration.calibration_set import Calibration
from diffprune.criteria.score_pass import weights_of
from diffprune.criteria.scores import Scores, sums_by_unit
from diffprune.groups import Group
from diffprune.options import ScoringOptions
from diffprune.runs.accumulator import Accumulator


def magnitude(
    denoiser: nn.Module, groups: Sequence[Group], calibration: Calibration | None, options: ScoringOptions,
    sums: Accumulator,
) -> Scores:  # fmt: skip
    """Return the sum of w^2 over the conv and linear weights of a unit (Han et al. 2015).

    Summed over groups as in DepGraph (Fang et al. 2023). Needs weights and no images.
    """
    weights = weights_of(denoiser, groups)
    values = sums_by_unit(groups, denoiser, weights, lambda path: weights[path].detach().float().square())
    return Scores("magnitude", values)
