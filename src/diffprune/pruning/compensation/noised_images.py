"""Draw the noised images of compensation, each at its own timestep, some of them held out."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffprune.calibration.calibration_set import Calibration, NoisyBatch, noisy_batch
from diffprune.options import PruneOptions
from diffprune.pipelines.diffusion import min_snr_weights, num_timesteps_of

HELD_OUT = 0.2
"""Share of the calibration images that is held out."""

MAX_IMAGES, MIN_IMAGES, MAX_VALUES = 256, 8, 2**22
"""Bounds of the default number of images. Activations of all images are in memory at once."""

MIN_LOG_WEIGHT = 0.1
"""Weight of the least noisy timestep under `log`."""


@dataclass(frozen=True)
class WeightedBatch:
    """One micro-batch. weights: (images,), of squared errors. held_out: selects corrections and is not fitted."""

    noisy: NoisyBatch
    weights: Tensor
    held_out: bool


def num_images(calibration: Calibration, options: PruneOptions) -> int:
    """Return `num_compensation_images`; by default as many images as have `MAX_VALUES` values together."""
    if options.num_compensation_images is not None:
        return options.num_compensation_images
    return min(MAX_IMAGES, max(MIN_IMAGES, MAX_VALUES // calibration.clean[0].numel()))


def draw_weighted(calibration: Calibration, options: PruneOptions, batch_size: int) -> list[WeightedBatch]:
    """Draw `num_images` noised images for the fit, and a quarter as many of held-out images.

    Timesteps are stratified over the schedule. A repeated image has another noise and another timestep.
    """
    generator = torch.Generator().manual_seed(options.seed)
    order = torch.randperm(len(calibration), generator=generator)
    num_reserved = min(max(1, round(len(order) * HELD_OUT)), len(order) - 1)
    num_fitted = num_images(calibration, options)
    num_held_out = max(1, num_fitted // 4)
    pools = (
        (order[num_reserved:], num_fitted, False),
        (order[:num_reserved] if num_reserved else order, num_held_out, True),
    )
    batches = []
    for pool, num, held_out in pools:
        rows = pool.repeat(-(-num // len(pool)))[:num]
        num_timesteps = calibration.num_timesteps
        spread = (torch.arange(num) + torch.rand(num, generator=generator)) / num
        timesteps = (
            (spread * num_timesteps).long().clamp(max=num_timesteps - 1)[torch.randperm(num, generator=generator)]
        )
        for start in range(0, num, batch_size):
            batch = slice(start, start + batch_size)
            clean = calibration.clean[rows[batch]]
            noise = torch.randn(clean.shape, generator=generator).to(clean)
            condition = calibration.conditioning(rows[batch].tolist())
            at = timesteps[batch].to(clean.device)
            noisy = noisy_batch(calibration.scheduler, clean, noise, at, condition, calibration.convention)
            batches.append(WeightedBatch(noisy, weights_of(calibration.scheduler, at, options), held_out))
    return batches


def weights_of(scheduler: Any, timesteps: Tensor, options: PruneOptions) -> Tensor:
    """Return the weights of images at these timesteps under `compensation_weighting`: (N,), float64.

    snr: `min_snr_weights`, lower for the least noisy timesteps. log: falls from 1 to 0.1 with the logarithm of the
    number of steps after the noisiest timestep. Source: OBS-Diff (Zhu et al., ICLR 2026), where errors of the first
    steps add up.
    """
    t, total = timesteps.double(), num_timesteps_of(scheduler)
    if options.compensation_weighting == "uniform":
        return torch.ones_like(t)
    if options.compensation_weighting == "log":
        share = torch.log1p(total - 1 - t) / torch.log(torch.tensor(float(total)))
        return 1 - (1 - MIN_LOG_WEIGHT) * share
    return min_snr_weights(scheduler, timesteps)
