"""The sampler: image i depends on the seed and on i alone, never on the batch or the process that draws it."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffprune.models.families import predict
from diffprune.options import SampleOptions
from diffprune.sampling.grids import timestep_grid
from diffprune.sampling.steps import ddim_step, ddpm_step, split_prediction


def image_generator(seed: int, index: int) -> torch.Generator:
    """The random generator of one image, on the CPU."""
    (state,) = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state) >> 1)


@torch.no_grad()
def draw_images(
    denoiser: nn.Module, scheduler: Any, indices: Sequence[int], options: SampleOptions, device: torch.device
) -> Tensor:
    """Draw the images of these indices: uint8 (N, C, H, W). The denoiser must be on `device`, in eval mode.

    All noise comes from one generator per image, in fp32 on the CPU. Uses the noise schedule (`alphas_cumprod`)
    and the prediction type of `scheduler`; the steps are our own, since diffusers' assume their own spacing.
    """
    config: Any = denoiser.config
    size = config.sample_size or 32
    shape = (config.in_channels, *((size, size) if isinstance(size, int) else size))
    generators = [image_generator(options.seed, i) for i in indices]

    def fresh_noise() -> Tensor:
        return torch.stack([torch.randn(shape, generator=g) for g in generators]).to(device)

    alpha_bars = scheduler.alphas_cumprod.to(device=device, dtype=torch.float32)
    grid = timestep_grid(options.grid, options.steps, len(alpha_bars))
    one = torch.ones((), device=device)
    x_t = fresh_noise()
    dtype = next(denoiser.parameters()).dtype
    for position, timestep in enumerate(grid):
        last = position + 1 == len(grid)
        a_t, a_next = alpha_bars[timestep], one if last else alpha_bars[grid[position + 1]]
        timesteps = torch.full((len(indices),), timestep, dtype=torch.long, device=device)
        output = predict(denoiser, x_t.to(dtype), timesteps).float()
        x_0, eps = split_prediction(scheduler.config.prediction_type, output, x_t, a_t)
        step = _stepper(options, x_0, eps, x_t)
        needs_noise = not last and (options.sampler == "ddpm" or options.eta > 0)
        x_t = step(alpha_bar_t=a_t, alpha_bar_next=a_next, noise=fresh_noise() if needs_noise else None)
    return ((x_t.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()


def _stepper(options: SampleOptions, x_0: Tensor, eps: Tensor, x_t: Tensor) -> Callable[..., Tensor]:
    if options.sampler == "ddim":
        return functools.partial(ddim_step, x_0, eps, eta=options.eta)
    return functools.partial(ddpm_step, x_0, x_t)
