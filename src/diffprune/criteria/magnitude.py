"""Magnitude scores: units with small weights go first."""

from collections.abc import Sequence

from torch import nn

from diffprune.criteria.scores import Scores, is_weighted, sum_by_unit
from diffprune.data.calibration import Calibration
from diffprune.groups import Group
from diffprune.options import PlanOptions


def magnitude(
    denoiser: nn.Module, groups: Sequence[Group], calibration: Calibration | None, options: PlanOptions
) -> Scores:
    """Sum of w^2 over the conv and linear weights of a unit (Han et al. 2015, over groups as in DepGraph 2023).

    Needs weights, but no images.
    """
    terms = {
        path: layer.weight.detach().float().square()
        for path, layer in denoiser.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear) and is_weighted(layer)
    }
    return Scores("magnitude", {g.name: sum_by_unit(g, denoiser, terms) for g in groups})
