"""Calibration: clean images and fixed noises, noised to any timestep."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diffprune.data.images import ImageSet, open_images
from diffprune.data.labels import labels_of
from diffprune.data.presets import preprocessing_of
from diffprune.errors import DataError, ModelError
from diffprune.models.process import UNCONDITIONAL, Condition, DiffusionProcess
from diffprune.models.state import borrowed
from diffprune.options import ImageOptions, PlanOptions, SampleOptions
from diffprune.options.images import OnCorrupt
from diffprune.progress import progress
from diffprune.sampling.sampler import conditions_of, draw_images

_log = logging.getLogger(__name__)

GENERATED = "generated"
"""DATA of a calibration on images that the model draws itself."""


@dataclass(frozen=True)
class Calibration:
    """Clean x_0 with fixed noise, and what the denoiser is told of each.

    clean, noise: (N, C, H, W). scheduler: a diffusers scheduler with `add_noise`. condition: rows as in `clean`.
    """

    clean: Tensor
    noise: Tensor
    scheduler: Any
    condition: Condition = field(default_factory=dict)

    @property
    def num_timesteps(self) -> int:
        """T, the number of timesteps of the schedule."""
        return len(self.scheduler.alphas_cumprod)

    def batches(self, timestep: int, batch_size: int) -> Iterator["NoisyBatch"]:
        """Yield all items at one timestep, in micro-batches."""
        for start in range(0, len(self.clean), batch_size):
            mine = slice(start, start + batch_size)
            clean, noise = self.clean[mine], self.noise[mine]
            timesteps = torch.full((len(clean),), timestep, dtype=torch.long, device=clean.device)
            condition = {name: value[mine].detach() for name, value in self.condition.items()}
            yield noisy_batch(self.scheduler, clean, noise, timesteps, condition)


@dataclass(frozen=True)
class NoisyBatch:
    """What a denoiser sees in training, and what it should answer.

    noisy, target: (N, C, H, W). timesteps: (N,). condition: rows as in `noisy`.
    """

    noisy: Tensor
    timesteps: Tensor
    condition: Condition
    target: Tensor


def noisy_batch(scheduler: Any, clean: Tensor, noise: Tensor, timesteps: Tensor, condition: Condition) -> NoisyBatch:
    """Clean x_0 and noise at their timesteps: x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps, a_t = `alphas_cumprod`.

    The schedule's table alone is used: `add_noise` of some diffusers schedulers means another process, or depends on
    the steps that were set last. The target follows the prediction type (v: Salimans and Ho, ICLR 2022). Raises
    ModelError for other types than epsilon, v_prediction and sample.
    """
    alpha_bar = scheduler.alphas_cumprod.to(device=clean.device, dtype=clean.dtype)[timesteps]
    signal, amount = (part.sqrt().view(-1, *[1] * (clean.ndim - 1)) for part in (alpha_bar, 1 - alpha_bar))
    kind = scheduler.config.prediction_type
    targets = {"epsilon": noise, "v_prediction": signal * noise - amount * clean, "sample": clean}
    if kind not in targets:
        raise ModelError(f"{type(scheduler).__name__} predicts {kind!r}; served: {', '.join(targets)}")
    return NoisyBatch(signal * clean + amount * noise, timesteps, condition, targets[kind])


def images_for(process: DiffusionProcess, source: str, options: ImageOptions | None = None) -> ImageSet:
    """Open DATA at the size and with the channels that a model draws.

    options: how images are prepared (None: by the preset `model`). For a class-conditional model the classes come with
    them. Raises OptionError when images come out in another size, DataError where the classes are not there.
    """
    channels, height, width = process.image_shape
    labels = None if process.classes is None else labels_of(source, process.classes.num_classes)
    return open_images(source, preprocessing_of(options or ImageOptions(), (height, width)), channels, labels=labels)


@dataclass(frozen=True)
class Drawn:
    """Clean images (N, C, H, W) in [-1, 1] and their classes (N,), None where they bear none."""

    images: Tensor
    labels: Tensor | None = None


def draw_images_of(images: ImageSet, num: int, seed: int, *, on_corrupt: OnCorrupt = "fail") -> Drawn:
    """Draw `num` different images by seed; raises DataError when there are too few.

    on_corrupt: `skip` draws another image in place of one that cannot be read, and names that one in a warning.
    """
    if len(images) < num:
        raise DataError(
            f"{images.source} holds {len(images)} images, the calibration needs {num}; "
            f"give more images or set num_calibration_images to at most {len(images)}"
        )
    drawn: list[Tensor] = []
    labels: list[int] = []
    for index in torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist():
        if len(drawn) == num:
            break
        try:
            image, name = images.read(index)
        except DataError as error:
            if on_corrupt == "fail":
                raise
            _log.warning("left out: %s", error)
            continue
        drawn.append(images.prepare(image, name))
        if images.labels is not None:
            labels.append(images.labels[index])
    if len(drawn) < num:
        raise DataError(f"{images.source}: only {len(drawn)} of {len(images)} images can be read, expected {num}")
    return Drawn(torch.stack(drawn), torch.tensor(labels) if images.labels is not None else None)


def own_images(denoiser: nn.Module, process: DiffusionProcess, options: PlanOptions, device: torch.device) -> Drawn:
    """Images that the model draws itself, in [-1, 1]: calibration without data, by uniform DDIM steps.

    A class-conditional model draws its classes in turn, with `generation_guidance`.
    """
    num = options.num_calibration_images
    drawing = own_drawing(options)
    drawn = []
    with borrowed(denoiser, device), progress("calibration images", num, "images") as advance:
        for start in range(0, num, options.batch_size):
            indices = range(start, min(start + options.batch_size, num))
            drawn.append(draw_images(denoiser, process, indices, drawing, device))
            advance(len(indices), "")
    return Drawn(torch.cat(drawn).float() / 127.5 - 1)


def own_drawing(options: PlanOptions) -> SampleOptions:
    """How a model draws its own calibration images."""
    return SampleOptions(
        num=options.num_calibration_images,
        steps=options.generation_steps,
        guidance_scale=options.generation_guidance,
        seed=options.seed,
    )


def calibrate(drawn: Drawn, process: DiffusionProcess, options: PlanOptions, device: torch.device) -> Calibration:
    """Calibration on clean images, each `num_noises` times with a noise of its own, by seed.

    An image without a class is one that the model drew itself: image i is of the class that the model draws as image i.
    """
    images = drawn.images
    clean = torch.cat([process.encode(part.to(device)) for part in images.split(options.batch_size)])
    condition: Condition = UNCONDITIONAL
    if process.classes is not None and drawn.labels is not None:
        condition = process.classes.embed(drawn.labels.to(device))
    elif process.classes is not None:
        condition, _ = conditions_of(process, range(len(images)), own_drawing(options), device)
    clean = clean.repeat_interleave(options.num_noises, 0)
    condition = {name: value.repeat_interleave(options.num_noises, 0) for name, value in condition.items()}
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(options.seed + 1)).to(device)
    return Calibration(clean, noise, process.scheduler, condition)
