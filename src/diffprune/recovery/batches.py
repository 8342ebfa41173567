"""What each training step sees, as a function of the seed and the step alone: a resumed run sees the same."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from diffprune.models.process import is_flow, num_timesteps_of
from diffprune.options import TrainingOptions

Sampling = Literal["uniform", "logit-normal"]


@dataclass(frozen=True)
class Draws:
    """The random draws of one global batch: noise (B, C, H, W), timesteps (B,); mirrored, unlabelled (B,) bool.

    unlabelled: images whose class is kept from the model, which is told its null class instead.
    """

    noise: Tensor
    timesteps: Tensor
    mirrored: Tensor
    unlabelled: Tensor


def image_indices(num_images: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Images of the global batch of a step: the concatenated shuffles of all epochs, cut into batches."""
    first = step * batch_size
    wanted = range(first, first + batch_size)
    return [int(_order(num_images, seed, i // num_images)[i % num_images]) for i in wanted]


@functools.lru_cache(maxsize=2)
def _order(num_images: int, seed: int, epoch: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The shuffle of an epoch; kept, since drawing it for every step would cost more than the step on a large set."""
    return np.random.default_rng([seed, 0, epoch]).permutation(num_images)


def sampling_of(scheduler: Any, options: TrainingOptions) -> Sampling:
    """How timesteps are drawn for models of a scheduler."""
    if options.timestep_sampling == "auto":
        return "logit-normal" if is_flow(scheduler) else "uniform"
    return options.timestep_sampling


def draw(shape: tuple[int, ...], scheduler: Any, options: TrainingOptions, step: int) -> Draws:
    """Noise, timesteps, mirroring and label dropout of a step. shape: (C, H, W).

    Timesteps are drawn antithetically: half of them uniform, the other half T - 1 - t (Song et al. 2021). Logit-normal:
    half of them at the noise levels s = sigmoid(z), z ~ N(0, 1), the other half at sigmoid(-z) (Esser et al. 2024,
    section 3.1), moved as the scheduler moves its own, to shift * s / (1 + (shift - 1) s) (section 5.3.2).
    """
    (state,) = np.random.SeedSequence([options.seed, 1, step]).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(state) >> 1)
    noise = torch.randn((options.batch_size, *shape), generator=generator)
    num_timesteps, num_half = num_timesteps_of(scheduler), -(-options.batch_size // 2)
    if sampling_of(scheduler, options) == "uniform":
        half = torch.randint(0, num_timesteps, (num_half,), generator=generator)
        timesteps = torch.cat([half, num_timesteps - 1 - half])[: options.batch_size]
    else:
        z = torch.randn(num_half, generator=generator, dtype=torch.float64)
        timesteps = _at_levels(torch.cat([z, -z]).sigmoid()[: options.batch_size], scheduler)
    mirrored = torch.rand(options.batch_size, generator=generator) < (0.5 if options.flip else 0.0)
    unlabelled = torch.rand(options.batch_size, generator=generator) < options.class_dropout
    return Draws(noise, timesteps, mirrored, unlabelled)


def _at_levels(levels: Tensor, scheduler: Any) -> Tensor:
    """The timesteps nearest to noise levels in 0 to 1, after the scheduler's own shift of them."""
    config, num_timesteps = scheduler.config, num_timesteps_of(scheduler)
    fixed = not getattr(config, "use_dynamic_shifting", False)
    shift = float(getattr(config, "shift", None) or getattr(config, "flow_shift", None) or 1.0) if fixed else 1.0
    levels = shift * levels / (1 + (shift - 1) * levels)
    return (levels * num_timesteps).long().clamp(max=num_timesteps - 1)


def shard_steps(num_images: int, options: TrainingOptions, first_step: int, shards: list[slice]) -> Iterator[list[int]]:
    """Image indices that a process loads, one list per forward pass, from `first_step` to the end."""
    for step in range(first_step, options.steps):
        indices = image_indices(num_images, options.batch_size, options.seed, step)
        for shard in shards:
            yield indices[shard]
