"""Sampling loop on the published timestep grids, with DDIM or DDPM steps."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffprune.options import SampleOptions
from diffprune.sampling.denoising_steps import ddim_step, ddpm_step, split_prediction
from diffprune.sampling.timestep_grids import timestep_grid

Predict = Callable[[Tensor, Tensor], Tensor]
"""Noisy images (N, C, H, W) and timesteps (N,) -> the denoiser's output, fp32."""

Record = Callable[[Tensor], None]
"""Called with x_t after every step."""


def denoise_on_grid(
    predict: Predict, scheduler: Any, x_t: Tensor, options: SampleOptions, noise: Callable[[], Tensor], record: Record
) -> Tensor:
    """Denoise x_T to images by DDIM or ancestral DDPM steps.

    A step leads to the next lower timestep of the grid, the last step to the clean image. `scheduler` gives the noise
    schedule (`alphas_cumprod`) and the prediction type; its own steps assume its own spacing and are not used.
    noise: draws fresh noise shaped as x_T.
    """
    alpha_bars = scheduler.alphas_cumprod.to(device=x_t.device, dtype=torch.float32)
    grid = timestep_grid(options.grid, options.steps, len(alpha_bars))
    one = torch.ones((), device=x_t.device)
    for position, timestep in enumerate(grid):
        last = position + 1 == len(grid)
        a_t, a_next = alpha_bars[timestep], one if last else alpha_bars[grid[position + 1]]
        timesteps = torch.full((len(x_t),), timestep, dtype=torch.long, device=x_t.device)
        x_0, eps = split_prediction(scheduler.config.prediction_type, predict(x_t, timesteps), x_t, a_t)
        fresh = noise() if not last and (options.sampler == "ddpm" or options.eta > 0) else None
        if options.sampler == "ddim":
            x_t = ddim_step(x_0, eps, a_t, a_next, options.eta, fresh)
        else:
            x_t = ddpm_step(x_0, x_t, a_t, a_next, fresh)
        record(x_t)
    return x_t
