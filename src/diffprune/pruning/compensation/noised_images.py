"""The noised images that compensation looks at: each at a timestep of its own, some of them held out."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffprune.calibration.calibration_set import Calibration, NoisyBatch, noisy_batch
from diffprune.options import PruneOptions
from diffprune.pipelines.diffusion import min_snr_weights, num_timesteps_of

HELD_OUT = 0.2
"""Share of the images on which a correction has to prove itself."""

MOST, FEWEST, MANY = 256, 8, 2**22

FLOOR = 0.1
"""The weight of the least noisy timestep, by `log`."""


@dataclass(frozen=True)
class WeightedBatch:
    """One micro-batch. weights: (images,), how much each counts. held_out: not used for the fit itself."""

    noisy: NoisyBatch
    weights: Tensor
    held_out: bool


def num_images(calibration: Calibration, options: PruneOptions) -> int:
    """`num_compensation_images`, or as many as hold `MANY` values together: what is alive of all is held at once."""
    if options.num_compensation_images is not None:
        return options.num_compensation_images
    return min(MOST, max(FEWEST, MANY // calibration.clean[0].numel()))


def draw_weighted(calibration: Calibration, options: PruneOptions, batch_size: int) -> list[WeightedBatch]:
    """`num_images` noised images for the fit and a quarter as many held-out ones, of other images.

    Timesteps are stratified over the schedule; an image that comes again has another noise and another timestep.
    """
    generator = torch.Generator().manual_seed(options.seed)
    order = torch.randperm(len(calibration), generator=generator)
    apart = min(max(1, round(len(order) * HELD_OUT)), len(order) - 1)
    num_fitted = num_images(calibration, options)
    num_held_out = max(1, num_fitted // 4)
    pools = ((order[apart:], num_fitted, False), (order[:apart] if apart else order, num_held_out, True))
    batches = []
    for pool, num, held_out in pools:
        rows = pool.repeat(-(-num // len(pool)))[:num]
        total = calibration.num_timesteps
        spread = (torch.arange(num) + torch.rand(num, generator=generator)) / num
        timesteps = (spread * total).long().clamp(max=total - 1)[torch.randperm(num, generator=generator)]
        for start in range(0, num, batch_size):
            mine = slice(start, start + batch_size)
            clean = calibration.clean[rows[mine]]
            noise = torch.randn(clean.shape, generator=generator).to(clean)
            told = calibration.conditioning(rows[mine].tolist())
            at = timesteps[mine].to(clean.device)
            noisy = noisy_batch(calibration.scheduler, clean, noise, at, told, calibration.convention)
            batches.append(WeightedBatch(noisy, weights_of(calibration.scheduler, at, options), held_out))
    return batches


def weights_of(scheduler: Any, timesteps: Tensor, options: PruneOptions) -> Tensor:
    """How much images at these timesteps count, by `compensation_weighting`: (N,), float64.

    snr: `min_snr_weights`, which takes weight from the least noisy timesteps. log: falls with the logarithm of the
    number of steps from the noisiest timestep on, from 1 to 0.1, after OBS-Diff (Zhu et al., ICLR 2026), whose first
    steps count most since their errors add up.
    """
    t, total = timesteps.double(), num_timesteps_of(scheduler)
    if options.compensation_weighting == "uniform":
        return torch.ones_like(t)
    if options.compensation_weighting == "log":
        passed = torch.log1p(total - 1 - t) / torch.log(torch.tensor(float(total)))
        return 1 - (1 - FLOOR) * passed
    return min_snr_weights(scheduler, timesteps)
