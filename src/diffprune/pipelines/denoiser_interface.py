"""Infer from recorded forward passes how a pipeline calls its denoiser: time, sign, joined inputs, batched kwargs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffprune.errors import ModelError
from diffprune.pipelines.conditioning import JOINED


@dataclass(frozen=True)
class Call:
    """One recorded forward pass and scheduler step.

    model_input: the noisy input, with anything joined to it. time: the denoiser's timestep.
    conditioning: all other keyword arguments. output: of the denoiser.
    scheduler_time, model_output, sample: the timestep, output and x_t that the scheduler received.
    """

    model_input: Tensor
    time: float
    conditioning: Mapping[str, Any]
    output: Tensor
    scheduler_time: float
    model_output: Tensor
    sample: Tensor


@dataclass(frozen=True)
class Convention:
    """Convert between the scheduler and the denoiser.

    The denoiser's timestep is offset + scale * the scheduler's; its output is sign * the scheduler's model output.
    """

    scale: float = 1.0
    offset: float = 0.0
    sign: float = 1.0

    def denoiser_timesteps(self, timesteps: Tensor) -> Tensor:
        """Convert timesteps of the scheduler to those of the denoiser."""
        plain = self.scale == 1.0 and self.offset == 0.0
        return timesteps if plain else self.offset + self.scale * timesteps.float()


PLAIN = Convention()


@dataclass(frozen=True)
class Interface:
    """How a pipeline calls its denoiser, for any prompts.

    is_rows: per leaf of the conditioning (`leaves_of`), whether it has one row per prompt; the others are shared.
    shape: of x_t for one prompt. joined: axis of x_t along which the pipeline joins another tensor; None for none.
    """

    is_rows: tuple[bool, ...]
    convention: Convention
    shape: torch.Size
    joined: int | None = None

    def conditioning(self, model_input: Tensor, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments of a forward pass, plus the part joined to its noisy input."""
        if self.joined is None:
            return dict(kwargs)
        size = self.shape[self.joined - 1]
        part = model_input.narrow(self.joined, size, model_input.shape[self.joined] - size)
        return {**kwargs, JOINED: {"axis": self.joined, "part": part}}


def convention_of(calls: Sequence[Call]) -> Convention:
    """Infer the convention from the calls of a run; raise ModelError if the pipeline changes the denoiser's output."""
    first, last = calls[0], calls[-1]
    span = last.scheduler_time - first.scheduler_time
    scale = (last.time - first.time) / span if span else first.time / first.scheduler_time
    offset = first.time - scale * first.scheduler_time
    output = first.output[tuple(slice(size) for size in first.model_output.shape)].float()
    received = first.model_output.float()
    sign = -1.0 if float((output + received).abs().sum()) < float((output - received).abs().sum()) else 1.0
    if not torch.allclose(output * sign, received, rtol=1e-2, atol=1e-3):
        raise ModelError("the pipeline changes its denoiser's output before the scheduler step, which is not supported")
    return Convention(_snapped(scale, (1.0, -1.0, 1e-3, -1e-3)), _snapped(offset, (0.0, 1.0, 1000.0)), sign)


def joined_along(model_input: Tensor, sample: Tensor) -> int | None:
    """Return the axis along which a pipeline joins another tensor to x_t; None if it passes x_t alone.

    Raises ModelError if the input is neither x_t nor x_t with a tensor joined to its end.
    """
    if model_input.shape == sample.shape and _parallel(model_input, sample):
        return None
    shapes = zip(model_input.shape, sample.shape, strict=False)
    longer = [axis for axis, (length, own_length) in enumerate(shapes) if length > own_length]
    if model_input.ndim == sample.ndim and len(longer) == 1 and longer[0] > 0:
        own = model_input.narrow(longer[0], 0, sample.shape[longer[0]])  # the pipeline may have scaled x_t
        if own.shape == sample.shape and _parallel(own, sample):
            return longer[0]
    raise ModelError(
        f"the denoiser's input {tuple(model_input.shape[1:])} is neither x_t {tuple(sample.shape[1:])} nor x_t with a "
        "tensor joined to its end, which is not supported"
    )


def _parallel(one: Tensor, other: Tensor) -> bool:
    return float(torch.cosine_similarity(one.float().flatten(), other.float().flatten(), dim=0)) > 0.999


def _snapped(value: float, usual: Sequence[float]) -> float:
    """Round to a usual value close by: some pipelines pass timesteps through half precision."""
    near = min(usual, key=lambda u: abs(u - value))
    return near if abs(near - value) <= 0.02 * max(abs(near), abs(usual[-1]) * 1e-2) else round(value, 6)
