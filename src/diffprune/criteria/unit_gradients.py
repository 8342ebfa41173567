"""Derivatives of each image's loss by a scale factor of each unit, computed from activations."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from diffprune.artifact.slicing import LayerDim, channel_axis
from diffprune.calibration.calibration_set import Calibration
from diffprune.criteria.activation_hooks import hooked_activations
from diffprune.criteria.score_pass import scored_timesteps
from diffprune.groups import Group
from diffprune.options import ScoringOptions
from diffprune.pipelines.predict import predict
from diffprune.runs.accumulator import Accumulator
from diffprune.sampling.sampler import image_generator

Directions = Callable[[int], Tensor]


def random_directions(calibration: Calibration, options: ScoringOptions) -> Directions:
    """Return timestep -> one direction v ~ N(0, I) of the output per image, drawn by seed."""

    def directions(timestep: int) -> Tensor:
        generator = image_generator(options.seed, timestep)
        return torch.randn(calibration.clean.shape, generator=generator).to(calibration.clean.device)

    return directions


def unit_gradients(
    denoiser: nn.Module,
    groups: Sequence[Group],
    calibration: Calibration,
    options: ScoringOptions,
    sums: Accumulator,
    directions: Directions | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Yield the derivatives of every image's loss at every timestep, by micro-batch; parameters get no gradients.

    Each item: group name -> float64 (images, units), the sum of w * g over all parameters of the unit.
    Each rank yields its own timesteps; `sums` records the progress.

    directions: timestep -> one direction per image, shaped as `calibration.clean`. Then the component of the output
    along it is differentiated, instead of the loss.

    For the rows of a layer the sum of w * g, bias included, is the sum over positions of y * dL/dy. For its columns it
    is the sum of x * dL/dx, x the layer's input, with the derivative through this layer alone.
    Image losses are independent, so one backward pass yields those of the whole micro-batch.
    """
    places: list[LayerDim] = sorted({(part.module, part.dim) for group in groups for part in group.slices})
    for t in sums.iterate(scored_timesteps(calibration.num_timesteps, options), "scores", "timesteps"):
        along = None if directions is None else directions(t).split(options.batch_size)
        for number, batch in enumerate(calibration.batches(t, options.batch_size)):
            by_place: dict[LayerDim, Tensor] = {}
            receive = partial(_add_products, denoiser, by_place)
            with hooked_activations(denoiser, places, receive):
                output = predict(denoiser, batch.noisy, batch.timesteps, batch.condition)
                errors = (output.float() - batch.target.float()).square().flatten(1).mean(1)
                values = errors if along is None else (output.float() * along[number]).flatten(1).mean(1)
                values.sum().backward()
            share = float(errors.detach().sum()) / len(calibration)
            sums.losses[t] = sums.losses.get(t, 0.0) + share
            yield {g.name: _by_unit(g, by_place, len(batch.noisy)) for g in groups}


def _add_products(
    denoiser: nn.Module, by_place: dict[LayerDim, Tensor], place: LayerDim, values: Tensor, gradient: Tensor
) -> None:
    product = _by_channel(denoiser.get_submodule(place[0]), values, gradient)
    by_place[place] = by_place.get(place, 0.0) + product


def _by_channel(layer: nn.Module, tensor: Tensor, gradient: Tensor) -> Tensor:
    """Return the sum of tensor * gradient over positions: (images, channels), float64."""
    product = tensor.double() * gradient.double()
    axis = channel_axis(layer, product)
    others = [d for d in range(1, product.ndim) if d != axis]
    return product.sum(others).cpu() if others else product.cpu()


def _by_unit(group: Group, by_place: Mapping[LayerDim, Tensor], num_images: int) -> Tensor:
    """Sum by image and unit; where frames or tokens are in the batch dimension, an image's rows are consecutive."""
    total = torch.zeros(num_images, group.num_units, dtype=torch.float64)
    for part in group.slices:
        values = by_place.get((part.module, part.dim))
        if values is not None:
            units = values[:, part.start : part.start + group.num_units * part.width]
            total += units.reshape(num_images, -1, group.num_units, part.width).sum((1, 3))
    return total
