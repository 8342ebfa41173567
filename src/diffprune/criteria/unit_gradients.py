"""Derivatives of each image's loss by a factor before each unit, from activations instead of weight gradients."""

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
    """For every timestep a direction v ~ N(0, I) of the output per image, by seed."""

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
    """Yield the derivatives of every image's loss at every timestep, by micro-batch; no parameter gets a gradient.

    A micro-batch: group name -> float64 (images, units), sum of w * g over all parameters of the unit.
    Of several processes each is given the timesteps that are its own; `sums` notes how far they have come.

    directions: timestep -> one direction per image, as `calibration.clean`; then it is the output's component along it
    that is derived, in place of the loss.

    For the rows of a layer the sum of w * g, bias included, is the sum over positions of y * dL/dy; for its
    columns it is that of x * dL/dx, with x the layer's input and the derivative taken through this layer alone.
    Image losses are means over pixels, so one backward pass serves the whole micro-batch.
    """
    places: list[LayerDim] = sorted({(part.module, part.dim) for group in groups for part in group.slices})
    for t in sums.iterate(scored_timesteps(calibration.num_timesteps, options), "scores", "timesteps"):
        along = None if directions is None else directions(t).split(options.batch_size)
        for number, batch in enumerate(calibration.batches(t, options.batch_size)):
            by_place: dict[LayerDim, Tensor] = {}
            take = partial(_take, denoiser, by_place)
            with hooked_activations(denoiser, places, take):
                output = predict(denoiser, batch.noisy, batch.timesteps, batch.condition)
                errors = (output.float() - batch.target.float()).square().flatten(1).mean(1)
                derived = errors if along is None else (output.float() * along[number]).flatten(1).mean(1)
                derived.sum().backward()
            share = float(errors.detach().sum()) / len(calibration)
            sums.losses[t] = sums.losses.get(t, 0.0) + share
            yield {g.name: _by_unit(g, by_place, len(batch.noisy)) for g in groups}


def _take(
    denoiser: nn.Module, by_place: dict[LayerDim, Tensor], place: LayerDim, values: Tensor, gradient: Tensor
) -> None:
    product = _by_channel(denoiser.get_submodule(place[0]), values, gradient)
    by_place[place] = by_place.get(place, 0.0) + product


def _by_channel(layer: nn.Module, tensor: Tensor, gradient: Tensor) -> Tensor:
    """Sum of tensor * gradient over positions: (images, channels), float64."""
    product = tensor.double() * gradient.double()
    axis = channel_axis(layer, product)
    others = [d for d in range(1, product.ndim) if d != axis]
    return product.sum(others).cpu() if others else product.cpu()


def _by_unit(group: Group, by_place: Mapping[LayerDim, Tensor], num_images: int) -> Tensor:
    """By image and unit; where a layer sees frames or tokens as a batch, those of one image follow each other."""
    total = torch.zeros(num_images, group.num_units, dtype=torch.float64)
    for part in group.slices:
        values = by_place.get((part.module, part.dim))
        if values is not None:
            mine = values[:, part.start : part.start + group.num_units * part.width]
            total += mine.reshape(num_images, -1, group.num_units, part.width).sum((1, 3))
    return total
