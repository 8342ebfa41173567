"""Taylor scores: first-order change of the training loss when a unit goes, over all timesteps."""

from collections.abc import Sequence

from torch import nn

from diffprune.criteria.gradients import summed_gradients
from diffprune.criteria.scores import Scores, sum_by_unit
from diffprune.data.calibration import Calibration
from diffprune.groups import Group
from diffprune.options import PlanOptions


def taylor(
    denoiser: nn.Module, groups: Sequence[Group], calibration: Calibration | None, options: PlanOptions
) -> Scores:
    """|sum of w * G| over the conv and linear weights of a unit, G the gradient summed over all timesteps.

    Source: Molchanov et al. 2019, as the baseline of Diff-Pruning (Fang et al. 2023).
    """
    sums = summed_gradients(denoiser, calibration, options, threshold=0.0, norms=False)
    terms = {path: weight * sums.gradients[path] for path, weight in sums.weights.items()}
    values = {g.name: sum_by_unit(g, denoiser, terms).abs() for g in groups}
    return Scores("taylor", values, sums.details)
