"""Calibration: clean images and fixed noises, noised to any timestep."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffprune.data.images import ImageSet, open_images
from diffprune.errors import DataError, ModelError
from diffprune.models.families import check_unconditional
from diffprune.models.state import borrowed
from diffprune.options import PlanOptions, SampleOptions
from diffprune.progress import progress
from diffprune.sampling.sampler import draw_images

GENERATED = "generated"
"""DATA of a calibration on images that the model draws itself."""


@dataclass(frozen=True)
class Calibration:
    """Clean images and their fixed noise under a noise schedule.

    images, noise: (N, C, H, W); images in [-1, 1]. scheduler: a diffusers scheduler with `add_noise`.
    """

    images: Tensor
    noise: Tensor
    scheduler: Any

    @property
    def num_timesteps(self) -> int:
        """T, the number of timesteps of the schedule."""
        return int(self.scheduler.config.num_train_timesteps)

    def batches(self, timestep: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield (noisy images, timesteps, targets) of all images at one timestep, in micro-batches."""
        for images, noise in zip(self.images.split(batch_size), self.noise.split(batch_size), strict=True):
            timesteps = torch.full((len(images),), timestep, dtype=torch.long, device=images.device)
            noisy = self.scheduler.add_noise(images, noise, timesteps)
            yield noisy, timesteps, training_target(self.scheduler, images, noise, timesteps)


def training_target(scheduler: Any, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the denoiser is trained to output, by the scheduler's prediction type (epsilon, v or sample)."""
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        velocity: Tensor = scheduler.get_velocity(images, noise, timesteps)
        return velocity
    if kind == "sample":
        return images
    raise ModelError(f"{type(scheduler).__name__} predicts {kind!r}; served: epsilon, v_prediction, sample")


def images_for(denoiser: nn.Module, source: str) -> ImageSet:
    """Open DATA at the size and with the channels that a denoiser takes; ModelError for a conditional one."""
    check_unconditional(denoiser)
    config: Any = denoiser.config
    size = config.sample_size or 32
    return open_images(source, (size, size) if isinstance(size, int) else tuple(size), config.in_channels)


def draw_images_of(images: ImageSet, num: int, seed: int) -> Tensor:
    """Draw `num` different images by seed, (num, C, H, W); raises DataError when there are too few."""
    if len(images) < num:
        raise DataError(
            f"{images.source} holds {len(images)} images, the calibration needs {num}; "
            f"give more images or set num_calibration_images to at most {len(images)}"
        )
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:num].tolist()
    return torch.stack([images[i] for i in chosen])


def own_images(denoiser: nn.Module, scheduler: Any, options: PlanOptions, device: torch.device) -> Tensor:
    """Images that the model draws itself, in [-1, 1]: calibration without data, by uniform DDIM steps."""
    check_unconditional(denoiser)
    num = options.num_calibration_images
    drawing = SampleOptions(num=num, steps=options.generation_steps, seed=options.seed)
    drawn = []
    with borrowed(denoiser, device), progress("calibration images", num, "images") as advance:
        for start in range(0, num, options.batch_size):
            indices = range(start, min(start + options.batch_size, num))
            drawn.append(draw_images(denoiser, scheduler, indices, drawing, device))
            advance(len(indices), "")
    return torch.cat(drawn).float() / 127.5 - 1


def with_noise(images: Tensor, scheduler: Any, *, num_noises: int, seed: int, device: torch.device) -> Calibration:
    """Calibration on clean images, each `num_noises` times with a noise of its own, by seed."""
    repeated = images.repeat_interleave(num_noises, 0)
    noise = torch.randn(repeated.shape, generator=torch.Generator().manual_seed(seed + 1))
    return Calibration(repeated.to(device), noise.to(device), scheduler)
