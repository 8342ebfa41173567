"""Random scores: the baseline for every criterion."""

from collections.abc import Sequence

import torch
from torch import nn

from diffprune.calibration.calibration_set import Calibration
from diffprune.criteria.scores import Scores
from diffprune.groups import Group
from diffprune.options import ScoringOptions
from diffprune.runs.accumulator import Accumulator


def random(
    denoiser: nn.Module, groups: Sequence[Group], calibration: Calibration | None, options: ScoringOptions,
    sums: Accumulator,
) -> Scores:  # fmt: skip
    """Return scores uniform in [0, 1), drawn by `options.seed` in the order of the groups.

    Needs no weights and no images.
    """
    generator = torch.Generator().manual_seed(options.seed)
    values = {g.name: torch.rand(g.num_units, generator=generator, dtype=torch.float64) for g in groups}
    return Scores("random", values)
