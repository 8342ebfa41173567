"""Taylor scores: first-order change of the training loss when a unit goes, over all timesteps."""

from collections.abc import Sequence

from torch import nn

from diffprune.criteria.gradients import summed_gradients
from diffprune.criteria.scores import Scores, sums_by_unit
from diffprune.data.calibration import Calibration
from diffprune.groups import Group
from diffprune.options import PlanOptions


def taylor(
    denoiser: nn.Module, groups: Sequence[Group], calibration: Calibration | None, options: PlanOptions
) -> Scores:
    """|sum of w * G| over the conv and linear weights of a unit, G the gradient summed over all timesteps.

    Source: Molchanov et al. 2019, as the baseline of Diff-Pruning (Fang et al. 2023).
    """
    sums = summed_gradients(denoiser, groups, calibration, options, threshold=0.0, norms=False)
    sums_of_terms = sums_by_unit(groups, denoiser, sums.weights, sums.term)
    return Scores("taylor", {name: values.abs() for name, values in sums_of_terms.items()}, sums.details)
