"""Absolute scores: Taylor terms whose signs cannot cancel between timesteps."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffprune.criteria.gradients import fold_gradients, needed, weights_of
from diffprune.criteria.scores import Scores, sums_by_unit
from diffprune.data.calibration import Calibration
from diffprune.groups import Group
from diffprune.options import PlanOptions


def absolute(
    denoiser: nn.Module, groups: Sequence[Group], calibration: Calibration | None, options: PlanOptions
) -> Scores:
    """Sum over t of |w * g_t| over the conv and linear weights of a unit, g_t the gradient at timestep t.

    Source: a variant of Diff-Pruning (Fang, Ma and Wang, NeurIPS 2023) without the signed sum and the threshold.
    """
    weights = weights_of(denoiser, groups)
    terms = {path: torch.zeros_like(weight, dtype=torch.float32) for path, weight in weights.items()}

    def add(path: str, gradient: Tensor) -> None:
        terms[path] += (weights[path].detach().float() * gradient).abs()

    losses = fold_gradients(denoiser, needed(calibration), options, weights, add, whole_timesteps=True)
    return Scores("absolute", sums_by_unit(groups, denoiser, weights, terms.__getitem__), losses.details())
