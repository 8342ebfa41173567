"""What block criteria share: the batches they look at, and blocks that have to stay."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from diffprune.calibration.calibration_set import Calibration, NoisyBatch
from diffprune.criteria.score_pass import spaced_timesteps
from diffprune.groups import fixed_blocks
from diffprune.options import ScoringOptions

STAYS = float("inf")
"""Score of a block that has to stay."""


def spaced_batches(calibration: Calibration, options: ScoringOptions, num_timesteps: int) -> Iterator[NoisyBatch]:
    """Yield the calibration images at `num_timesteps` timesteps, evenly spaced among those to be scored."""
    for t in spaced_timesteps(calibration, options, num_timesteps):
        yield from calibration.batches(t, options.batch_size)


def with_fixed(denoiser: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scores with those of the blocks that have to stay above all others."""
    fixed = fixed_blocks(denoiser)
    return {
        name: torch.tensor([STAYS if i in fixed[name] else float(v) for i, v in enumerate(scores)], dtype=torch.float64)
        for name, scores in values.items()
    }
