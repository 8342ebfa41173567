"""Random draws of each training step: image order, noise, timesteps, mirroring, label dropout.

They depend on the seed and the step alone, so a resumed run draws the same.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from diffprune.errors import OptionError
from diffprune.options import TrainingOptions
from diffprune.pipelines.diffusion import is_flow, num_timesteps_of

Sampling = Literal["uniform", "logit-normal"]


@dataclass(frozen=True)
class Draws:
    """The random draws of one global batch: noise (B, C, H, W), timesteps (B,); mirrored, unlabeled (B,) bool.

    unlabeled: images whose class label is dropped; the model gets its null class instead.
    """

    noise: Tensor
    timesteps: Tensor
    mirrored: Tensor
    unlabeled: Tensor

    def __getitem__(self, part: slice) -> "Draws":
        return Draws(self.noise[part], self.timesteps[part], self.mirrored[part], self.unlabeled[part])


def image_indices(num_images: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Return the image indices of a global batch: the shuffles of all epochs, concatenated and cut into batches."""
    first = step * batch_size
    positions = range(first, first + batch_size)
    return [int(_order(num_images, seed, i // num_images)[i % num_images]) for i in positions]


@functools.lru_cache(maxsize=2)
def _order(num_images: int, seed: int, epoch: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the shuffle of an epoch; cached, since on a large set drawing it can cost more than a step."""
    return np.random.default_rng([seed, 0, epoch]).permutation(num_images)


def split_held_out(num_images: int, num_validation: int, seed: int) -> tuple[Sequence[int], Sequence[int]]:
    """Split image indices by seed into those for training and those held out for validation."""
    if num_validation == 0:
        return range(num_images), ()
    order = np.random.default_rng([seed, 3]).permutation(num_images).tolist()
    return sorted(order[num_validation:]), order[:num_validation]


def sampling_of(scheduler: Any, options: TrainingOptions) -> Sampling:
    """Return the distribution of training timesteps; `auto` is logit-normal for flows, else uniform."""
    if options.timestep_sampling == "auto":
        return "logit-normal" if is_flow(scheduler) else "uniform"
    return options.timestep_sampling


def draw(shape: tuple[int, ...], scheduler: Any, options: TrainingOptions, step: int) -> Draws:
    """Draw noise, timesteps, mirroring and label dropout of a step. shape: (C, H, W).

    Timesteps are antithetic. Uniform: half are drawn, the other half are T - 1 - t (Song et al. 2021). Logit-normal:
    half have the noise level s = sigmoid(z), z ~ N(0, 1), the other half sigmoid(-z) (Esser et al. 2024, section 3.1).
    The scheduler's shift maps s to shift * s / (1 + (shift - 1) s) (section 5.3.2).
    """
    generator = _generator(options.seed, 1, step)
    noise = torch.randn((options.batch_size, *shape), generator=generator)
    num_timesteps, num_half = num_timesteps_of(scheduler), -(-options.batch_size // 2)
    if sampling_of(scheduler, options) == "uniform":
        half = torch.randint(0, num_timesteps, (num_half,), generator=generator)
        timesteps = torch.cat([half, num_timesteps - 1 - half])[: options.batch_size]
    else:
        z = torch.randn(num_half, generator=generator, dtype=torch.float64)
        timesteps = _timesteps_at(torch.cat([z, -z]).sigmoid()[: options.batch_size], scheduler)
    mirrored = torch.rand(options.batch_size, generator=generator) < (0.5 if options.flip else 0.0)
    unlabeled = torch.rand(options.batch_size, generator=generator) < options.class_dropout
    return Draws(noise, timesteps, mirrored, unlabeled)


def validation_draws(num: int, shape: tuple[int, ...], scheduler: Any, options: TrainingOptions) -> Draws:
    """Draw one noise and one timestep per held-out image, fixed for the whole run. shape: (C, H, W).

    The timesteps are `num` quantiles of the training distribution. No image is mirrored or unlabeled.
    """
    noise = torch.randn((num, *shape), generator=_generator(options.seed, 4))
    quantiles = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    if sampling_of(scheduler, options) == "uniform":
        timesteps = (quantiles * num_timesteps_of(scheduler)).long()
    else:
        timesteps = _timesteps_at(torch.special.ndtri(quantiles).sigmoid(), scheduler)
    none = torch.zeros(num, dtype=torch.bool)
    return Draws(noise, timesteps, none, none)


def _generator(*key: int) -> torch.Generator:
    (state,) = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state) >> 1)


def _timesteps_at(levels: Tensor, scheduler: Any) -> Tensor:
    """Return the timesteps of noise levels in 0 to 1, after the scheduler's fixed shift."""
    config, num_timesteps = scheduler.config, num_timesteps_of(scheduler)
    is_fixed = not getattr(config, "use_dynamic_shifting", False)
    shift = float(getattr(config, "shift", None) or getattr(config, "flow_shift", None) or 1.0) if is_fixed else 1.0
    levels = shift * levels / (1 + (shift - 1) * levels)
    return (levels * num_timesteps).long().clamp(max=num_timesteps - 1)


def shards_of(options: TrainingOptions, num_processes: int, process_index: int) -> list[slice]:
    """Return the shard of the global batch of one rank, one slice per forward pass of a step.

    Raises OptionError where the batch does not divide over ranks and accumulation steps.
    """
    size, rest = divmod(options.batch_size, num_processes * options.accumulation_steps)
    if rest or size == 0:
        raise OptionError(
            f"batch_size: got {options.batch_size}, which does not divide over {num_processes} processes "
            f"times {options.accumulation_steps} accumulation steps; give a multiple of "
            f"{num_processes * options.accumulation_steps}"
        )
    starts = [(number * num_processes + process_index) * size for number in range(options.accumulation_steps)]
    return [slice(start, start + size) for start in starts]
