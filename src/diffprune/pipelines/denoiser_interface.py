"""How a pipeline uses its denoiser: its time, the sign of its output, what is joined to x_t, which tensors are rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffprune.errors import ModelError
from diffprune.pipelines.conditioning import JOINED


@dataclass(frozen=True)
class Call:
    """One recorded pass. whole: the noisy input and what was joined to it. told: keyword arguments beside it and time.

    given, sample: the output and the x_t that the scheduler got.
    """

    whole: Tensor
    time: float
    told: Mapping[str, Any]
    output: Tensor
    scheduler_time: float
    given: Tensor
    sample: Tensor


@dataclass(frozen=True)
class Convention:
    """How a denoiser is told the time and how its output is read.

    Its timestep is offset + scale * the scheduler's; its output is sign times what the scheduler is given.
    """

    scale: float = 1.0
    offset: float = 0.0
    sign: float = 1.0

    def denoiser_timesteps(self, timesteps: Tensor) -> Tensor:
        """The scheduler's timesteps as the denoiser wants them."""
        plain = self.scale == 1.0 and self.offset == 0.0
        return timesteps if plain else self.offset + self.scale * timesteps.float()


PLAIN = Convention()


@dataclass(frozen=True)
class Interface:
    """How a pipeline uses its denoiser, whatever the prompts.

    is_rows: of which leaves (`leaves_of`) of what the denoiser is told there is a row per prompt; the others are shared
    by all prompts. shape: of x_t of one prompt. joined: the axis of x_t along which something is joined to it.
    """

    is_rows: tuple[bool, ...]
    convention: Convention
    shape: torch.Size
    joined: int | None = None

    def conditioning(self, whole: Tensor, told: Mapping[str, Any]) -> dict[str, Any]:
        """What a pass was told, and what was joined to its noisy input."""
        if self.joined is None:
            return dict(told)
        size = self.shape[self.joined - 1]
        part = whole.narrow(self.joined, size, whole.shape[self.joined] - size)
        return {**told, JOINED: {"axis": self.joined, "part": part}}


def convention_of(calls: Sequence[Call]) -> Convention:
    """From the passes of a run; raises ModelError where the output is changed on its way to the scheduler."""
    first, last = calls[0], calls[-1]
    span = last.scheduler_time - first.scheduler_time
    scale = (last.time - first.time) / span if span else first.time / first.scheduler_time
    offset = first.time - scale * first.scheduler_time
    output = first.output[tuple(slice(size) for size in first.given.shape)].float()
    given = first.given.float()
    sign = -1.0 if float((output + given).abs().sum()) < float((output - given).abs().sum()) else 1.0
    if not torch.allclose(output * sign, given, rtol=1e-2, atol=1e-3):
        raise ModelError("the pipeline changes its denoiser's output before the scheduler gets it; that is not served")
    return Convention(_snapped(scale, (1.0, -1.0, 1e-3, -1e-3)), _snapped(offset, (0.0, 1.0, 1000.0)), sign)


def joined_along(whole: Tensor, sample: Tensor) -> int | None:
    """The axis along which a pipeline joins something to its x_t; raises ModelError where it does something else."""
    if whole.shape == sample.shape and _parallel(whole, sample):
        return None
    longer = [axis for axis in range(min(whole.ndim, sample.ndim)) if whole.shape[axis] > sample.shape[axis]]
    if whole.ndim == sample.ndim and len(longer) == 1 and longer[0] > 0:
        own = whole.narrow(longer[0], 0, sample.shape[longer[0]])  # perhaps scaled
        if own.shape == sample.shape and _parallel(own, sample):
            return longer[0]
    raise ModelError(
        f"the denoiser takes {tuple(whole.shape[1:])} for latents of {tuple(sample.shape[1:])}, and not just these "
        "or these with something joined to their end; that is not served"
    )


def _parallel(one: Tensor, other: Tensor) -> bool:
    return float(torch.cosine_similarity(one.float().flatten(), other.float().flatten(), dim=0)) > 0.999


def _snapped(value: float, usual: Sequence[float]) -> float:
    """A usual value that is meant: times pass through half precision in some pipelines."""
    near = min(usual, key=lambda u: abs(u - value))
    return near if abs(near - value) <= 0.02 * max(abs(near), abs(usual[-1]) * 1e-2) else round(value, 6)
