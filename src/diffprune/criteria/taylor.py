"""Taylor scores: first-order change of the training loss when a unit goes, over all timesteps."""

from collections.abc import Sequence

from torch import nn

from diffprune.calibration.calibration_set import Calibration
from diffprune.criteria.score_pass import summed_gradients
from diffprune.criteria.scores import Scores, sums_by_unit
from diffprune.groups import Group
from diffprune.options import ScoringOptions
from diffprune.runs.accumulator import Accumulator


def taylor(
    denoiser: nn.Module, groups: Sequence[Group], calibration: Calibration | None, options: ScoringOptions,
    sums: Accumulator,
) -> Scores:  # fmt: skip
    """Return |sum of w * G| over the conv and linear weights of a unit, G the gradient summed over all timesteps.

    Source: Molchanov et al. 2019, as the baseline of Diff-Pruning (Fang et al. 2023).
    """
    gradients = summed_gradients(denoiser, groups, calibration, options, sums, threshold=0.0, norms=False)
    sums_of_terms = sums_by_unit(groups, denoiser, gradients.weights, gradients.term)
    return Scores("taylor", {name: values.abs() for name, values in sums_of_terms.items()}, gradients.details)
