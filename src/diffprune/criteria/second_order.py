"""Second-order scores: Taylor terms with curvature estimated from the gradients of the timesteps."""

from collections.abc import Sequence

from torch import Tensor, nn

from diffprune.calibration.calibration_set import Calibration
from diffprune.criteria.score_pass import fold_gradients, needed, weights_of, zeros_of
from diffprune.criteria.scores import Scores, sums_by_unit
from diffprune.groups import Group
from diffprune.options import ScoringOptions
from diffprune.runs.accumulator import Accumulator


def second_order(
    denoiser: nn.Module, groups: Sequence[Group], calibration: Calibration | None, options: ScoringOptions,
    sums: Accumulator,
) -> Scores:  # fmt: skip
    """Return the sum of |w * G - 1/2 * sum over t of (w * g_t)^2| over the conv and linear weights of a unit.

    g_t is the gradient at timestep t and G their sum: the second-order expansion of the loss with the empirical
    Fisher information in place of the Hessian's diagonal (LeCun et al., NeurIPS 1989; the combination as in Ma,
    Fang and Wang, NeurIPS 2023, equation 5), over all timesteps.
    """
    weights = weights_of(denoiser, groups)
    terms = zeros_of(weights, sums)

    def add(path: str, gradient: Tensor) -> None:
        term = weights[path].detach().float() * gradient
        terms[path] += term - term.square() / 2

    details = fold_gradients(denoiser, needed(calibration), options, weights, add, sums, whole_timesteps=True)
    values = sums_by_unit(groups, denoiser, weights, lambda path: sums.total(path).abs())
    return Scores("second-order", values, details)
