"""Derivatives of each image's loss by a factor before each unit, from activations instead of weight gradients."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from diffprune.criteria.gradients import Losses, check_loss, scored_timesteps
from diffprune.data.calibration import Calibration
from diffprune.groups import Group
from diffprune.models.families import Dim, predict
from diffprune.models.resize import CHANNELS_FIRST
from diffprune.options import PlanOptions
from diffprune.progress import progress

Place = tuple[str, Dim]
"""A layer's path and whether its input or its output is meant."""


@dataclass(frozen=True)
class UnitGradients:
    """One micro-batch: group name -> float64 (images, units), sum of w * g over all parameters of the unit."""

    by_group: Mapping[str, Tensor]
    losses: Losses


def unit_gradients(
    denoiser: nn.Module, groups: Sequence[Group], calibration: Calibration, options: PlanOptions
) -> Iterator[UnitGradients]:
    """Yield the derivatives of every image's loss at every timestep; no parameter gets a gradient.

    For the rows of a layer the sum of w * g, bias included, is the sum over positions of y * dL/dy; for its
    columns it is that of x * dL/dx, with x the layer's input and the derivative taken through this layer alone.
    Image losses are means over pixels, so one backward pass serves the whole micro-batch.
    """
    places: list[Place] = sorted({(part.module, part.dim) for group in groups for part in group.slices})
    losses = Losses({}, [])
    timesteps = scored_timesteps(calibration.num_timesteps, options)
    with progress("scores", len(timesteps), "timesteps") as advance:
        for t in timesteps:
            for batch in calibration.batches(t, options.batch_size):
                by_place: dict[Place, Tensor] = {}
                with _tapped(denoiser, places, by_place):
                    output = predict(denoiser, batch.noisy, batch.timesteps, batch.condition)
                    errors = (output.float() - batch.target.float()).square().flatten(1).mean(1)
                    check_loss(float(errors.detach().sum()), t)
                    errors.sum().backward()
                share = float(errors.detach().sum()) / len(calibration)
                losses.by_timestep[t] = losses.by_timestep.get(t, 0.0) + share
                yield UnitGradients({g.name: _by_unit(g, by_place, len(batch.noisy)) for g in groups}, losses)
            advance(1, f"loss {losses.by_timestep[t]:.4f}")


class _Tap(torch.autograd.Function):
    """A tensor as it is, of which `taken` is given the values and the gradient when that is known.

    The values are autograd's to keep, so that activation checkpointing computes them anew. `root` asks for the
    gradient, since no parameter does.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, root: Tensor, taken: Callable[[Tensor, Tensor], None]) -> Tensor:
        ctx.save_for_backward(values)
        ctx.taken = taken
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (values,) = ctx.saved_tensors
        ctx.taken(values, gradient)
        return gradient if ctx.needs_input_grad[0] else None, None, None


@contextmanager
def _tapped(denoiser: nn.Module, places: Sequence[Place], by_place: dict[Place, Tensor]) -> Iterator[None]:
    """Put taps before and behind layers; in backward passes they sum value * gradient by image and channel."""
    root = torch.zeros((), requires_grad=True)
    wanted = [(parameter, parameter.requires_grad) for parameter in denoiser.parameters()]

    def tap(place: Place, values: Any) -> Any:
        if not values.is_floating_point():
            return values

        def taken(tensor: Tensor, gradient: Tensor) -> None:
            product = _by_channel(denoiser.get_submodule(place[0]), tensor, gradient)
            by_place[place] = by_place.get(place, 0.0) + product

        return cast(Any, _Tap).apply(values, root, taken)

    def before(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], place: Place) -> Any:
        if inputs:
            return (tap(place, inputs[0]), *inputs[1:]), named
        name, values = next(iter(named.items()))
        return (), {**named, name: tap(place, values)}

    def behind(layer: nn.Module, inputs: Any, output: Any, place: Place) -> Any:
        return tap(place, output)

    handles = []
    for place in places:
        layer = denoiser.get_submodule(place[0])
        if place[1] == "in":
            handles.append(layer.register_forward_pre_hook(partial(before, place=place), with_kwargs=True))
        else:
            handles.append(layer.register_forward_hook(partial(behind, place=place)))
    denoiser.requires_grad_(False)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, value in wanted:
            parameter.requires_grad_(value)


def _by_channel(layer: nn.Module, tensor: Tensor, gradient: Tensor) -> Tensor:
    """Sum of tensor * gradient over positions: (images, channels), float64."""
    product = tensor.double() * gradient.double()
    axis = 1 if isinstance(layer, CHANNELS_FIRST) else product.ndim - 1
    others = [d for d in range(1, product.ndim) if d != axis]
    return product.sum(others).cpu() if others else product.cpu()


def _by_unit(group: Group, by_place: Mapping[Place, Tensor], num_images: int) -> Tensor:
    """By image and unit; where a layer sees frames or tokens as a batch, those of one image follow each other."""
    total = torch.zeros(num_images, group.num_units, dtype=torch.float64)
    for part in group.slices:
        values = by_place.get((part.module, part.dim))
        if values is not None:
            mine = values[:, part.start : part.start + group.num_units * part.width]
            total += mine.reshape(num_images, -1, group.num_units, part.width).sum((1, 3))
    return total
