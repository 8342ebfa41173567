"""Diff-Pruning scores: Taylor terms summed over timesteps whose loss is above a threshold."""

from collections.abc import Sequence

from torch import Tensor, nn

from diffprune.calibration.calibration_set import Calibration
from diffprune.criteria.score_pass import norm_weights_of, summed_gradients
from diffprune.criteria.scores import Scores, sums_by_unit
from diffprune.groups import Group
from diffprune.options import ScoringOptions
from diffprune.runs.accumulator import Accumulator


def diff_pruning(
    denoiser: nn.Module, groups: Sequence[Group], calibration: Calibration | None, options: ScoringOptions,
    sums: Accumulator,
) -> Scores:  # fmt: skip
    """Return the sum of |w * G| over the conv and linear weights of a unit (Fang, Ma and Wang, NeurIPS 2023).

    G = sum of dL_t/dw over t = 0, 1, 2, ... until L_t / L_max < options.threshold (that t is excluded).
    options.power=2 sums (w * G)^2 instead; options.norms=True adds |w * G| of the norm weights. Both together are the
    form of the research code behind the published tables.
    """
    sums_of_gradients = summed_gradients(
        denoiser, groups, calibration, options, sums, threshold=options.threshold, norms=options.norms
    )
    norms = norm_weights_of(denoiser, groups)

    def term(path: str) -> Tensor:
        return sums_of_gradients.term(path).abs() ** (1 if path in norms else options.power)

    return Scores(
        "diff-pruning", sums_by_unit(groups, denoiser, sums_of_gradients.weights, term), sums_of_gradients.details
    )
