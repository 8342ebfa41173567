"""The calibration set: clean images or latents with fixed noise and conditioning, noised to any timestep."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from diffprune.compute.placement import placed, restored_devices
from diffprune.data.images import ImageSet, open_images
from diffprune.data.labels import labels_of
from diffprune.data.presets import preprocessing_of
from diffprune.errors import DataError, ModelError
from diffprune.options import CalibrationOptions, ImageOptions, SampleOptions
from diffprune.options.image_options import OnCorrupt
from diffprune.pipelines.conditioning import select_rows
from diffprune.pipelines.denoiser_interface import PLAIN, Convention
from diffprune.pipelines.diffusion import UNCONDITIONAL, Conditioning, DiffusionProcess, is_flow, num_timesteps_of
from diffprune.runs.progress import progress
from diffprune.sampling.sampler import conditions_of, draw_images

_log = logging.getLogger(__name__)

GENERATED = "generated"
"""Value of DATA for images drawn by the model itself."""


@dataclass(frozen=True)
class Calibration:
    """Clean x_0 with fixed noise and the conditioning of each item.

    Attributes:
        clean: x_0, (N, ...).
        noise: eps, (N, ...).
        scheduler: a diffusers scheduler, for its noise levels.
        condition: conditioning kwargs of the denoiser.
        is_rows: whether each tensor of `condition`, flattened, has a batch dimension; None: all have one.
        convention: scale of the denoiser's timesteps and sign of its output.
    """

    clean: Tensor
    noise: Tensor
    scheduler: Any
    condition: Conditioning = field(default_factory=dict)
    is_rows: tuple[bool, ...] | None = None
    convention: Convention = PLAIN

    @property
    def num_timesteps(self) -> int:
        """T, the number of timesteps of the schedule."""
        return num_timesteps_of(self.scheduler)

    def __len__(self) -> int:
        return len(self.clean)

    def conditioning(self, indices: slice | Sequence[int]) -> dict[str, Any]:
        """Return the conditioning kwargs of some items."""
        is_rows = (True,) * len(self.condition) if self.is_rows is None else self.is_rows
        return select_rows(self.condition, is_rows, indices)

    def every(self, step: int, first: int) -> "Calibration":
        """Return every `step`-th item, starting at item `first`."""
        if step == 1:
            return self
        rows = list(range(first, len(self), step))
        return replace(self, clean=self.clean[rows], noise=self.noise[rows], condition=self.conditioning(rows))

    def batches(self, timestep: int, batch_size: int) -> Iterator["NoisyBatch"]:
        """Yield all items, noised to one timestep, in micro-batches."""
        for start in range(0, len(self.clean), batch_size):
            rows = slice(start, start + batch_size)
            clean, noise = self.clean[rows], self.noise[rows]
            timesteps = torch.full((len(clean),), timestep, dtype=torch.long, device=clean.device)
            condition = self.conditioning(rows)
            yield noisy_batch(self.scheduler, clean, noise, timesteps, condition, self.convention)


@dataclass(frozen=True)
class NoisyBatch:
    """Inputs of a forward pass and the target of its output.

    Attributes:
        noisy: x_t, (N, ...).
        timesteps: in the scale of the denoiser, (N,).
        condition: conditioning kwargs, with the batch dimension of `noisy`.
        target: target of the output, (N, ...).
    """

    noisy: Tensor
    timesteps: Tensor
    condition: Conditioning
    target: Tensor


def noisy_batch(
    scheduler: Any,
    clean: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    condition: Conditioning,
    convention: Convention = PLAIN,
) -> NoisyBatch:
    """Noise clean x_0 to timesteps in 0 to T - 1.

    Diffusion: x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps, a_t = `alphas_cumprod`; the target follows the prediction type
    (v: Salimans and Ho, ICLR 2022). Flow matching: x_t = (1 - s) x_0 + s eps with s = (t + 1) / T, and the target is
    eps - x_0 (Lipman et al., ICLR 2023; Esser et al. 2024). `add_noise` of the scheduler is not called: in some
    diffusers schedulers it is another process, or depends on the steps that were set last.
    Raises ModelError for other prediction types.
    """
    shape = (-1, *[1] * (clean.ndim - 1))
    if is_flow(scheduler):
        share = ((timesteps + 1) / num_timesteps_of(scheduler)).to(clean.dtype)
        signal, amount, levels = 1 - share, share, share.float() * num_timesteps_of(scheduler)
        target = noise - clean
        if getattr(scheduler.config, "invert_sigmas", False):  # time and velocity are reversed
            levels, target = num_timesteps_of(scheduler) - levels, -target
    else:
        alpha_bar = scheduler.alphas_cumprod.to(device=clean.device, dtype=clean.dtype)[timesteps]
        signal, amount, levels = alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), timesteps
        kind = scheduler.config.prediction_type
        targets = {"epsilon": noise, "sample": clean}
        targets["v_prediction"] = signal.view(shape) * noise - amount.view(shape) * clean
        if kind not in targets:
            raise ModelError(
                f"{type(scheduler).__name__} predicts {kind!r}, which is not supported; supported: {', '.join(targets)}"
            )
        target = targets[kind]
    noisy = signal.view(shape) * clean + amount.view(shape) * noise
    return NoisyBatch(noisy, convention.denoiser_timesteps(levels), condition, convention.sign * target)


def images_for(process: DiffusionProcess, source: str, options: ImageOptions | None = None) -> ImageSet:
    """Open DATA at the image size and number of channels of a model, with class labels for a class-conditional model.

    options: preprocessing of the images; None uses the preset `model`.
    Raises OptionError if the preprocessing yields another size, DataError if class labels are missing.
    """
    assert process.pipeline is None, "text-conditioned models use `open_texts`"
    channels, height, width = process.image_shape
    labels = None if process.classes is None else labels_of(source, process.classes.num_classes)
    return open_images(source, preprocessing_of(options or ImageOptions(), (height, width)), channels, labels=labels)


@dataclass(frozen=True)
class LabeledImages:
    """Clean images (N, C, H, W) in [-1, 1] and their class labels (N,); None for images without labels."""

    images: Tensor
    labels: Tensor | None = None


def draw_calibration_images(images: ImageSet, num: int, seed: int, *, on_corrupt: OnCorrupt = "fail") -> LabeledImages:
    """Draw `num` different images by seed; raise DataError if there are too few.

    on_corrupt: `skip` draws another image in place of one that cannot be read, and logs a warning.
    """
    if len(images) < num:
        raise DataError(
            f"{images.source} holds {len(images)} images, but calibration needs {num}; "
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
            _log.warning("skipped: %s", error)
            continue
        drawn.append(images.prepare(image, name))
        if images.labels is not None:
            labels.append(images.labels[index])
    if len(drawn) < num:
        raise too_few_readable(images.source, len(drawn), len(images), num)
    return LabeledImages(torch.stack(drawn), torch.tensor(labels) if images.labels is not None else None)


def too_few_readable(source: str, num_readable: int, num_images: int, num: int) -> DataError:
    """Return the error for a data set in which fewer than `num` images can be read."""
    remedy = f"set num_calibration_images to {num_readable}" if num_readable else "give images that can be read"
    return DataError(f"{source}: only {num_readable} of {num_images} images can be read, expected {num}; {remedy}")


def generate_images(
    denoiser: nn.Module, process: DiffusionProcess, options: CalibrationOptions, device: torch.device
) -> LabeledImages:
    """Draw images in [-1, 1] with the model itself, by uniform DDIM steps.

    A class-conditional model draws its classes in turn, with `generation_guidance`.
    """
    num = options.num_calibration_images
    drawing = generation_options(options)
    drawn = []
    with (
        placed(denoiser, device, offloaded=options.offload == "cpu"),
        progress("calibration images", num, "images") as advance,
    ):
        for start in range(0, num, options.batch_size):
            indices = range(start, min(start + options.batch_size, num))
            drawn.append(draw_images(denoiser, process, indices, drawing, device))
            advance(len(indices), "")
    return LabeledImages(torch.cat(drawn).float() / 127.5 - 1)


def generation_options(options: CalibrationOptions) -> SampleOptions:
    """Return the sampling options of calibration images that the model draws."""
    return SampleOptions(
        num=options.num_calibration_images,
        steps=options.generation_steps,
        guidance_scale=options.generation_guidance,
        seed=options.seed,
    )


def calibrate(
    drawn: LabeledImages, process: DiffusionProcess, options: CalibrationOptions, device: torch.device
) -> Calibration:
    """Return the calibration set of clean images, each `num_noises` times with its own noise, by seed.

    Images without labels of a class-conditional model were drawn by the model. Their classes are the cycle of all
    classes.
    """
    images = drawn.images
    with restored_devices([] if process.autoencoder is None else [process.autoencoder]):
        clean = torch.cat([process.encode(part.to(device)) for part in images.split(options.batch_size)])
    condition: Conditioning = UNCONDITIONAL
    if process.classes is not None and drawn.labels is not None:
        condition = process.classes.embed(drawn.labels.to(device))
    elif process.classes is not None:
        condition, _ = conditions_of(process, range(len(images)), generation_options(options), device)
    return with_noise(Calibration(clean, clean, process.scheduler, condition), options)


def with_noise(calibration: Calibration, options: CalibrationOptions) -> Calibration:
    """Repeat every item `num_noises` times, each with its own noise, by seed."""
    indices = torch.arange(len(calibration)).repeat_interleave(options.num_noises).tolist()
    clean = calibration.clean[indices]
    is_rows = calibration.is_rows or (True,) * len(calibration.condition)
    condition = select_rows(calibration.condition, is_rows, indices)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(options.seed + 1)).to(clean.device)
    return replace(calibration, clean=clean, noise=noise, condition=condition)
