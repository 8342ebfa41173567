"""The sampler: image i depends on the seed and on i alone, not on batch or rank."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from diffprune.errors import ModelError, OptionError
from diffprune.options import SampleOptions, class_list
from diffprune.pipelines.diffusion import UNCONDITIONAL, Conditioning, DiffusionProcess
from diffprune.pipelines.predict import predict
from diffprune.sampling.grid_sampling import Predict, denoise_on_grid
from diffprune.sampling.pipeline_sampling import check_prompts, draw_by_pipeline
from diffprune.sampling.scheduler_sampling import denoise_with, scheduler_named

Frame = Callable[[Tensor], None]
"""Called after every step with the current images, uint8 (N, C, H, W)."""


def image_generator(seed: int, index: int) -> torch.Generator:
    """Return the random generator of one image, on the CPU."""
    (state,) = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state) >> 1)


@torch.no_grad()
def draw_images(
    denoiser: nn.Module,
    process: DiffusionProcess,
    indices: Sequence[int],
    options: SampleOptions,
    device: torch.device,
    frame: Frame | None = None,
) -> Tensor:
    """Draw the images of these indices: uint8 (N, C, H, W). The denoiser must be on `device`, in eval mode.

    All noise is drawn from one generator per image, in fp32 on the CPU. With `options.interpolate` the initial noise of
    image i is on the arc between the noises of two images. A text-conditioned model is sampled by its pipeline's call,
    image i with prompt i modulo the number of prompts. Of a video the first frame is returned; `frame` gets all frames.
    """
    generators = [image_generator(options.seed, i) for i in indices]
    if process.pipeline is not None:
        prompts = check_prompts(process.pipeline, options)
        texts = [prompts[i % len(prompts)] for i in indices]
        frames = draw_by_pipeline(process.pipeline, denoiser, texts, generators, options, device)
        if frame is not None and len(frames) > 1:
            for image in frames:
                frame(image)
        return frames[0]
    output = predictor(denoiser, process, indices, options, device)

    def fresh_noise() -> Tensor:
        return torch.stack([torch.randn(process.shape, generator=g) for g in generators]).to(device)

    def pixels(x: Tensor) -> Tensor:
        if not bool(x.isfinite().all()):
            raise ModelError(
                "the sampled images are not finite: the weights are damaged, or the schedule ends with zero signal"
            )
        return ((process.decode(x).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()

    def record(x_t: Tensor) -> None:
        if frame is not None:
            frame(pixels(x_t))

    noise = fresh_noise()
    if options.interpolate is not None:
        first, last = (
            torch.randn(process.shape, generator=image_generator(options.seed, i)) for i in options.interpolate
        )
        noise = torch.stack([slerp(first, last, i / max(1, options.num_images - 1)) for i in indices]).to(device)
    if options.scheduler is not None:
        chosen = scheduler_named(options.scheduler, process.scheduler)
        return pixels(denoise_with(chosen, output, noise, options.steps, generators, record))
    return pixels(denoise_on_grid(output, process.scheduler, noise, options, fresh_noise, record))


def predictor(
    denoiser: nn.Module, process: DiffusionProcess, indices: Sequence[int], options: SampleOptions, device: torch.device
) -> Predict:
    """Return the denoiser as a function of x_t and t, with the conditioning and guidance of these images.

    Guidance: eps = eps_null + s * (eps_class - eps_null) (Ho and Salimans 2022, equation 6). It holds for every
    prediction type, since they are linear in each other.
    """
    condition, null_condition = conditions_of(process, indices, options, device)

    def output(x_t: Tensor, timesteps: Tensor) -> Tensor:
        conditional = predict(denoiser, x_t, timesteps, condition).float()
        if null_condition is None:
            return conditional
        unconditional = predict(denoiser, x_t, timesteps, null_condition).float()
        return unconditional + (options.guidance_scale or 0.0) * (conditional - unconditional)

    return output


def conditions_of(
    process: DiffusionProcess, indices: Sequence[int], options: SampleOptions, device: torch.device
) -> tuple[Conditioning, Conditioning | None]:
    """Return the conditioning of each image, and that of the null class where guidance needs it.

    Image i has class i modulo the number of classes in the options. Raises OptionError for classes or guidance that the
    model does not support.
    """
    guided = options.is_guided
    unsupported = [name for name in ("prompts", "negative_prompt") if getattr(options, name) is not None]
    if unsupported:
        raise OptionError(f"{', '.join(unsupported)}: the model is not conditioned on text; leave them out")
    if process.classes is None:
        if guided or options.classes is not None:
            raise OptionError("classes and guidance_scale: the model is unconditional; leave them out")
        return UNCONDITIONAL, None
    chosen = class_list(options.classes) if options.classes is not None else range(process.classes.num_classes)
    if max(chosen) >= process.classes.num_classes:
        raise OptionError(f"classes: got {max(chosen)}, the model has 0 to {process.classes.num_classes - 1}")
    if guided and process.classes.null_class is None:
        raise OptionError("guidance_scale: the model has no null class, which guidance needs; leave it out")
    labels = torch.tensor([chosen[i % len(chosen)] for i in indices], device=device)
    if not guided:
        return process.classes.embed(labels), None
    return process.classes.embed(labels), process.classes.embed(
        torch.full_like(labels, process.classes.null_class or 0)
    )


def slerp(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Return the point at `share` (0 to 1) of the arc between two noises (Shoemake, SIGGRAPH 1985)."""
    a, b = first.double().flatten(), second.double().flatten()
    angle = torch.acos((a @ b / (a.norm() * b.norm())).clamp(-1, 1))
    if float(angle) < 1e-6:
        return first
    mixed = (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)
    return mixed.view_as(first).to(first.dtype)
