"""Timestep grids of the published samplers."""

import math

import numpy as np

from diffprune.errors import OptionError
from diffprune.options import Grid


def timestep_grid(kind: Grid, num_steps: int, num_train_timesteps: int) -> list[int]:
    """Return the timesteps of a grid, descending, without repeats (Song, Meng and Ermon, DDIM, ICLR 2021).

    uniform: 0, T // S, 2 * (T // S), ... below T; more than S members where S does not divide T.
    quad: the squares of S numbers spaced evenly from 0 to sqrt(0.8 T), rounded down; repeats are dropped, so
    S = 100 at T = 1000 gives 96. Raises OptionError when S exceeds T.
    """
    if num_steps > num_train_timesteps:
        raise OptionError(f"steps: got {num_steps}, the model has {num_train_timesteps} timesteps; give at most that")
    if kind == "uniform":
        grid = list(range(0, num_train_timesteps, num_train_timesteps // num_steps))
    else:
        grid = [int(s) for s in np.linspace(0, math.sqrt(0.8 * num_train_timesteps), num_steps) ** 2]
    return sorted(set(grid), reverse=True)
