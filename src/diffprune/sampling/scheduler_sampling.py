"""Sampling loop with a diffusers scheduler that is chosen by class name."""

import inspect
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, cast

import diffusers
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from diffprune.errors import ModelError, OptionError
from diffprune.pipelines.diffusion import is_flow
from diffprune.sampling.grid_sampling import Predict, Record

OWN = "own"
"""Name of the scheduler saved with the model."""


def scheduler_named(name: str, own: Any) -> Any:
    """Return a new scheduler of this diffusers class with the noise schedule of `own`.

    Raises OptionError for an unknown name, ModelError where the class does not support the schedule.
    """
    kind = type(own) if name == OWN else getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        names = [n for n in dir(diffusers) if n.endswith("Scheduler") and not n.startswith("Flax")]
        near = get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "give for example DPMSolverMultistepScheduler"
        raise OptionError(
            f"scheduler: diffusers has no {name!r}; {hint}; `{OWN}` is the scheduler saved with the model"
        )
    try:
        return cast(Any, kind).from_config(own.config)
    except (ValueError, TypeError, ImportError, NotImplementedError) as error:
        raise ModelError(f"{name} does not support the noise schedule of {type(own).__name__}: {error}") from error


def check_steps(scheduler: Any, steps: int, num_timesteps: int) -> None:
    """Set the timesteps of `scheduler`; raises OptionError where they do not fit the timesteps of the model."""
    if steps > num_timesteps:
        raise OptionError(f"steps: got {steps}, the model has {num_timesteps} timesteps; give at most that")
    name = type(scheduler).__name__
    try:
        scheduler.set_timesteps(steps)
    except ValueError as error:
        raise OptionError(f"steps: got {steps}, which {name} does not support: {error}") from error
    first = int(max(scheduler.timesteps))
    if first >= num_timesteps and not is_flow(scheduler):
        raise OptionError(
            f"steps: got {steps}, for which {name} starts at timestep {first}, but the model has timesteps 0 to "
            f"{num_timesteps - 1}; give fewer steps"
        )


def denoise_with(
    scheduler: Any, predict: Predict, noise: Tensor, steps: int, generators: Sequence[torch.Generator], record: Record
) -> Tensor:
    """Denoise unit noise to images with the spacing and the steps of a new scheduler.

    generators: one per image, for the noise of stochastic schedulers; deterministic schedulers do not use them.
    """
    scheduler.set_timesteps(steps, device=noise.device)
    more = {"generator": list(generators)} if "generator" in inspect.signature(scheduler.step).parameters else {}
    x_t: Tensor = noise * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        output = predict(scheduler.scale_model_input(x_t, timestep), timestep.expand(len(x_t)))
        x_t = scheduler.step(output, timestep, x_t, **more).prev_sample
        record(x_t)
    return x_t
