"""What each training step sees, as a function of the seed and the step alone: a resumed run sees the same."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffprune.options import TrainingOptions


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


def draw(shape: tuple[int, ...], num_timesteps: int, options: TrainingOptions, step: int) -> Draws:
    """Noise, timesteps, mirroring and label dropout of a step. shape: (C, H, W).

    Timesteps are drawn antithetically: half of them uniform, the other half T - 1 - t (Song et al. 2021).
    """
    (state,) = np.random.SeedSequence([options.seed, 1, step]).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(state) >> 1)
    noise = torch.randn((options.batch_size, *shape), generator=generator)
    half = torch.randint(0, num_timesteps, (-(-options.batch_size // 2),), generator=generator)
    timesteps = torch.cat([half, num_timesteps - 1 - half])[: options.batch_size]
    mirrored = torch.rand(options.batch_size, generator=generator) < (0.5 if options.flip else 0.0)
    unlabelled = torch.rand(options.batch_size, generator=generator) < options.class_dropout
    return Draws(noise, timesteps, mirrored, unlabelled)


def shard_steps(num_images: int, options: TrainingOptions, first_step: int, shards: list[slice]) -> Iterator[list[int]]:
    """Image indices that a process loads, one list per forward pass, from `first_step` to the end."""
    for step in range(first_step, options.steps):
        indices = image_indices(num_images, options.batch_size, options.seed, step)
        for shard in shards:
            yield indices[shard]
