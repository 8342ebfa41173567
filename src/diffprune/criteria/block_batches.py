"""Shared by the block criteria: calibration batches at a few timesteps, and scores of blocks that must be kept."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from diffprune.calibration.calibration_set import Calibration, NoisyBatch
from diffprune.criteria.score_pass import spaced_timesteps
from diffprune.groups import fixed_blocks
from diffprune.options import ScoringOptions

KEPT_SCORE = float("inf")
"""Score of a block that must be kept."""


def spaced_batches(calibration: Calibration, options: ScoringOptions, num_timesteps: int) -> Iterator[NoisyBatch]:
    """Yield the calibration batches at `num_timesteps` evenly spaced scored timesteps."""
    for t in spaced_timesteps(calibration, options, num_timesteps):
        yield from calibration.batches(t, options.batch_size)


def with_fixed(denoiser: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace the scores of blocks that must be kept by infinity."""
    fixed = fixed_blocks(denoiser)
    return {
        name: torch.tensor(
            [KEPT_SCORE if i in fixed[name] else float(v) for i, v in enumerate(scores)], dtype=torch.float64
        )
        for name, scores in values.items()
    }
