"""Derivatives of each image's loss by a factor before each unit, from activations instead of weight gradients."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

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
    """Yield the derivatives of every image's loss at every timestep.

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
                with _recording(denoiser, places) as tensors:
                    output = predict(denoiser, batch.noisy, batch.timesteps, batch.condition)
                errors = (output.float() - batch.target.float()).square().flatten(1).mean(1)
                check_loss(float(errors.detach().sum()), t)
                share = float(errors.detach().sum()) / len(calibration.clean)
                losses.by_timestep[t] = losses.by_timestep.get(t, 0.0) + share
                gradients = torch.autograd.grad(errors.sum(), list(tensors.values()), allow_unused=True)
                by_place = {
                    place: _by_channel(denoiser.get_submodule(place[0]), tensor.detach(), gradient)
                    for (place, tensor), gradient in zip(tensors.items(), gradients, strict=True)
                    if gradient is not None
                }
                yield UnitGradients({g.name: _by_unit(g, by_place, len(batch.noisy)) for g in groups}, losses)
            advance(1, f"loss {losses.by_timestep[t]:.4f}")


@contextmanager
def _recording(denoiser: nn.Module, places: Sequence[Place]) -> Iterator[dict[Place, Tensor]]:
    """Collect the inputs and outputs of layers during a forward pass, each as a tensor of its own in the graph."""
    seen: dict[Place, Tensor] = {}

    def record_input(place: Place) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if not inputs[0].is_floating_point():
                return None
            seen[place] = inputs[0].view_as(inputs[0])
            return (seen[place], *inputs[1:])

        return hook

    def record_output(place: Place) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            seen[place] = output
            return output.view_as(output)

        return hook

    handles = []
    for path, dim in places:
        layer = denoiser.get_submodule(path)
        if dim == "in":
            handles.append(layer.register_forward_pre_hook(record_input((path, dim))))
        else:
            handles.append(layer.register_forward_hook(record_output((path, dim))))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _by_channel(layer: nn.Module, tensor: Tensor, gradient: Tensor) -> Tensor:
    """Sum of tensor * gradient over positions: (images, channels), float64."""
    product = tensor.double() * gradient.double()
    axis = 1 if isinstance(layer, CHANNELS_FIRST) else product.ndim - 1
    others = [d for d in range(1, product.ndim) if d != axis]
    return product.sum(others).cpu() if others else product.cpu()


def _by_unit(group: Group, by_place: Mapping[Place, Tensor], num_images: int) -> Tensor:
    total = torch.zeros(num_images, group.num_units, dtype=torch.float64)
    for part in group.slices:
        values = by_place.get((part.module, part.dim))
        if values is not None:
            mine = values[:, part.start : part.start + group.num_units * part.width]
            total += mine.view(num_images, group.num_units, part.width).sum(2)
    return total
