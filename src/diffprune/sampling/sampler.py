"""The sampler: image i depends on the seed and on i alone, never on the batch or the process that draws it."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffprune.models.families import predict
from diffprune.options import SampleOptions
from diffprune.sampling.by_grid import denoise_on_grid
from diffprune.sampling.by_scheduler import denoise_with, scheduler_named

Frame = Callable[[Tensor], None]
"""Called after every step with the images as they are, uint8 (N, C, H, W)."""


def image_generator(seed: int, index: int) -> torch.Generator:
    """The random generator of one image, on the CPU."""
    (state,) = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state) >> 1)


@torch.no_grad()
def draw_images(
    denoiser: nn.Module,
    scheduler: Any,
    indices: Sequence[int],
    options: SampleOptions,
    device: torch.device,
    frame: Frame | None = None,
) -> Tensor:
    """Draw the images of these indices: uint8 (N, C, H, W). The denoiser must be on `device`, in eval mode.

    All noise comes from one generator per image, in fp32 on the CPU. With `options.interpolate` the first noise of
    image i lies on the arc between those of the two images named.
    """
    config: Any = denoiser.config
    size = config.sample_size or 32
    shape = (config.in_channels, *((size, size) if isinstance(size, int) else size))
    generators = [image_generator(options.seed, i) for i in indices]
    dtype = next(denoiser.parameters()).dtype

    def fresh_noise() -> Tensor:
        return torch.stack([torch.randn(shape, generator=g) for g in generators]).to(device)

    def output(x_t: Tensor, timesteps: Tensor) -> Tensor:
        return predict(denoiser, x_t.to(dtype), timesteps).float()

    def record(x_t: Tensor) -> None:
        if frame is not None:
            frame(_pixels(x_t))

    noise = fresh_noise()
    if options.interpolate is not None:
        first, last = (torch.randn(shape, generator=image_generator(options.seed, i)) for i in options.interpolate)
        noise = torch.stack([slerp(first, last, i / max(1, options.num - 1)) for i in indices]).to(device)
    if options.scheduler is not None:
        chosen = scheduler_named(options.scheduler, scheduler)
        return _pixels(denoise_with(chosen, output, noise, options.steps, generators, record))
    return _pixels(denoise_on_grid(output, scheduler, noise, options, fresh_noise, record))


def slerp(first: Tensor, second: Tensor, share: float) -> Tensor:
    """The point at `share` (0 to 1) of the arc between two noises (Shoemake, SIGGRAPH 1985)."""
    a, b = first.double().flatten(), second.double().flatten()
    angle = torch.acos((a @ b / (a.norm() * b.norm())).clamp(-1, 1))
    if float(angle) < 1e-6:
        return first
    mixed = (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)
    return mixed.view_as(first).to(first.dtype)


def _pixels(x: Tensor) -> Tensor:
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
