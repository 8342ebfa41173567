"""Absolute scores: Taylor terms whose signs cannot cancel between timesteps."""

from collections.abc import Sequence

import torch
from torch import nn

from diffprune.criteria.gradients import Losses, needed, timestep_gradients, weights_of
from diffprune.criteria.scores import Scores, sum_by_unit
from diffprune.data.calibration import Calibration
from diffprune.groups import Group
from diffprune.options import PlanOptions


def absolute(
    denoiser: nn.Module, groups: Sequence[Group], calibration: Calibration | None, options: PlanOptions
) -> Scores:
    """Sum over t of |w * g_t| over the conv and linear weights of a unit, g_t the gradient at timestep t.

    Source: a variant of Diff-Pruning (Fang, Ma and Wang, NeurIPS 2023) without the signed sum and the threshold.
    """
    weights, losses = weights_of(denoiser), Losses({}, [])
    terms = {path: torch.zeros_like(weight, dtype=torch.float32) for path, weight in weights.items()}
    for gradients in timestep_gradients(denoiser, needed(calibration), options, weights, losses):
        for (path, weight), gradient in zip(weights.items(), gradients, strict=True):
            terms[path] += (weight.detach().float() * gradient).abs()
    return Scores("absolute", {g.name: sum_by_unit(g, denoiser, terms) for g in groups}, losses.details())
