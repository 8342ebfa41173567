"""Absolute scores: the absolute Taylor terms of each timestep, which cannot cancel each other."""

from collections.abc import Sequence

from torch import Tensor, nn

from diffprune.calibration.calibration_set import Calibration
from diffprune.criteria.score_pass import fold_gradients, needed, weights_of, zeros_of
from diffprune.criteria.scores import Scores, sums_by_unit
from diffprune.groups import Group
from diffprune.options import ScoringOptions
from diffprune.runs.accumulator import Accumulator


def absolute(
    denoiser: nn.Module, groups: Sequence[Group], calibration: Calibration | None, options: ScoringOptions,
    sums: Accumulator,
) -> Scores:  # fmt: skip
    """Sum over t of |w * g_t| over the conv and linear weights of a unit, g_t the gradient at timestep t.

    Source: a variant of Diff-Pruning (Fang, Ma and Wang, NeurIPS 2023) without the signed sum and the threshold.
    """
    weights = weights_of(denoiser, groups)
    terms = zeros_of(weights, sums)

    def add(path: str, gradient: Tensor) -> None:
        terms[path] += (weights[path].detach().float() * gradient).abs()

    details = fold_gradients(denoiser, needed(calibration), options, weights, add, sums, whole_timesteps=True)
    return Scores("absolute", sums_by_unit(groups, denoiser, weights, sums.total), details)
