"""Optimal Brain Surgeon scores: the error of the consumer layers without a unit, after least-squares compensation."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from diffprune.artifact.slicing import LayerDim, channel_axis
from diffprune.calibration.calibration_set import Calibration
from diffprune.compute.unfold import inputs_at, is_supported, sample_positions
from diffprune.criteria.activation_hooks import hooked_activations
from diffprune.criteria.score_pass import needed, spaced_timesteps
from diffprune.criteria.scores import Scores
from diffprune.criteria.unit_gradients import random_directions
from diffprune.errors import ModelError
from diffprune.groups import Group
from diffprune.options import ScoringOptions
from diffprune.pipelines.predict import predict
from diffprune.runs.accumulator import Accumulator
from diffprune.runs.distributed import all_reduce_sum, rank_shard
from diffprune.runs.progress import progress
from diffprune.runs.tensor_cache import CacheEntry
from diffprune.sampling.sampler import image_generator

NUM_TIMESTEPS = 10
PER_IMAGE = 16
"""Positions sampled in each image."""

DAMPING = 0.01
"""Share of the mean diagonal added to H."""

MAX_HESSIAN_ENTRIES = 2**27
"""Entries of all H accumulated in one pass over the images: 1 GB in float64."""


@dataclass
class _Consumer:
    """A layer that takes units as input columns: H = E[x x^T] of its inputs and E[g^2] of its outputs."""

    layer: Any
    hessian: Tensor
    sensitivity: Tensor


def obs(
    denoiser: nn.Module, groups: Sequence[Group], calibration: Calibration | None, options: ScoringOptions,
    sums: Accumulator,
) -> Scores:  # fmt: skip
    """Remove the cheapest unit of a group again and again; a unit's score is its cost at its removal.

    The cost of unit j is the sum over consumers of tr(R W_j [H^-1]_jj^-1 W_j^T), R = diag E[g^2] and g the derivative
    of <v, output>, v ~ N(0, I), by the consumer's output. After each removal W and H^-1 are updated to the remaining
    units (Hassibi and Stork, NeurIPS 1992; for structures Kurtic et al., NeurIPS 2023). A score is the largest cost so
    far, which preserves the order of removal. Uses 10 evenly spaced timesteps.
    Raises ModelError for units that are no input of a convolution or linear layer.
    """
    images = needed(calibration)
    values: dict[str, Tensor] = {}
    for number, part in enumerate(_in_parts(denoiser, groups)):
        values |= sums.cached(f"{number}", partial(_scored, denoiser, part, images, options))[0]
    return Scores("obs", values, {"timesteps_used": len(spaced_timesteps(images, options, NUM_TIMESTEPS))})


def _scored(
    denoiser: nn.Module, part: Sequence[Group], images: Calibration, options: ScoringOptions, sums: Accumulator
) -> CacheEntry:
    """Return the scores of some groups; timesteps, then groups, are sharded over ranks."""
    consumers = _collect(denoiser, part, images, options, sums)
    values = {group.name: torch.zeros(group.num_units, dtype=torch.float64) for group in part}
    shard = rank_shard(part, options.device)
    with progress("scores", len(shard), "groups") as advance:
        for group in shard:
            values[group.name] = _costs(group, consumers)
            advance(1, "")
    return {name: all_reduce_sum(costs, options.device) for name, costs in values.items()}, {}


def _consumers_of(denoiser: nn.Module, group: Group) -> list[str]:
    """Return the paths of the layers that take the units of a group."""
    consumers = dict.fromkeys(part.module for part in group.slices if part.dim == "in")
    paths = [path for path in consumers if is_supported(denoiser.get_submodule(path))]
    if not paths:
        raise ModelError(
            f"{group.name}: obs needs a convolution or linear layer that takes its units; choose another criterion"
        )
    return paths


def _in_parts(denoiser: nn.Module, groups: Sequence[Group]) -> Iterator[list[Group]]:
    """Yield groups in parts whose H matrices fit into memory together."""
    part: list[Group] = []
    total = 0
    for group in groups:
        size = sum(_size(denoiser, path) ** 2 for path in _consumers_of(denoiser, group))
        if part and total + size > MAX_HESSIAN_ENTRIES:
            yield part
            part, total = [], 0
        part.append(group)
        total += size
    yield part


def _size(denoiser: nn.Module, path: str) -> int:
    return int(cast(Any, denoiser.get_submodule(path)).weight[0].numel())


def _collect(
    denoiser: nn.Module, groups: Sequence[Group], calibration: Calibration, options: ScoringOptions, sums: Accumulator
) -> dict[str, _Consumer]:
    layers: dict[str, Any] = {}
    for path in dict.fromkeys(path for group in groups for path in _consumers_of(denoiser, group)):
        layers[path] = denoiser.get_submodule(path)
        zeros = partial(sums.zeros, device=calibration.clean.device)
        zeros(f"{path} hessian", _size(denoiser, path), _size(denoiser, path))
        zeros(f"{path} sensitivity", len(layers[path].weight))
        zeros(f"{path} num")

    def accumulate(place: LayerDim, values: Tensor, gradient: Tensor) -> None:
        path, layer = place[0], layers[place[0]]
        if place[1] == "in":
            rows = inputs_at(layer, values, sample_positions(layer, values, PER_IMAGE, generators[path]))[:, 0]
            sums.tensors[f"{path} hessian"] += (rows.float().T @ rows.float()).double()
            sums.tensors[f"{path} num"] += len(rows)
        else:
            squares = gradient.double().square().movedim(channel_axis(layer, gradient), -1)
            sums.tensors[f"{path} sensitivity"] += squares.flatten(0, -2).sum(0)

    places: list[LayerDim] = [(path, dim) for path in layers for dim in ("in", "out")]
    directions = random_directions(calibration, options)
    for t in sums.iterate(spaced_timesteps(calibration, options, NUM_TIMESTEPS), "sums", "timesteps"):
        # a generator per layer draws image after image, whatever the batch size
        generators = {
            path: image_generator(options.seed + 1, t * len(layers) + number) for number, path in enumerate(layers)
        }
        along = directions(t).split(options.batch_size)
        for number, batch in enumerate(calibration.batches(t, options.batch_size)):
            with hooked_activations(denoiser, places, accumulate):
                output = predict(denoiser, batch.noisy, batch.timesteps, batch.condition)
                (output.float() * along[number]).sum().backward()
    consumers = {}
    for path, layer in layers.items():
        num = sums.total(f"{path} num").clamp(min=1)
        hessian, sensitivity = (sums.total(f"{path} {name}") / num for name in ("hessian", "sensitivity"))
        consumers[path] = _Consumer(layer, hessian, sensitivity)
    return consumers


def _costs(group: Group, consumers: Mapping[str, _Consumer]) -> Tensor:
    """Return the score of each unit: (units,), float64."""
    problems = [_problem(group, path, consumer) for path, consumer in consumers.items() if _takes(group, path)]
    scores = torch.zeros(group.num_units, dtype=torch.float64)
    remaining = torch.ones(group.num_units, dtype=torch.bool)
    largest = 0.0
    for _ in range(group.num_units):
        costs = torch.stack([problem.costs() for problem in problems]).sum(0).cpu()
        unit = int(torch.where(remaining, costs, torch.inf).argmin())
        largest = max(largest * (1 + 1e-12), float(costs[unit]))
        scores[unit], remaining[unit] = largest, False
        for problem in problems:
            problem.remove(unit)
    return scores


def _takes(group: Group, path: str) -> bool:
    return any(part.module == path and part.dim == "in" for part in group.slices)


@dataclass
class _Problem:
    """State of one consumer: weights (outputs, inputs) scaled by sensitivity, H^-1, and the columns of each unit."""

    weight: Tensor
    inverse: Tensor
    columns: Tensor

    def costs(self) -> Tensor:
        """Return tr(W_j [H^-1]_jj^-1 W_j^T) of every unit j; 0 for removed units."""
        blocks = self.inverse[self.columns[:, :, None], self.columns[:, None, :]]
        is_removed = blocks.diagonal(dim1=1, dim2=2).sum(1) == 0
        blocks = blocks + torch.diag_embed(is_removed.to(blocks).unsqueeze(1).expand(-1, blocks.shape[1]))
        weights = self.weight.T[self.columns]
        costs: Tensor = (weights * torch.linalg.solve(blocks, weights)).sum((1, 2))
        return costs

    def remove(self, unit: int) -> None:
        """Remove a unit and compensate with the remaining ones."""
        columns = self.columns[unit]
        rows = torch.linalg.solve(self.inverse[columns][:, columns], self.inverse[columns])
        self.weight -= self.weight[:, columns] @ rows
        self.inverse -= self.inverse[:, columns] @ rows
        self.weight[:, columns] = 0
        self.inverse[columns], self.inverse[:, columns] = 0, 0


def _problem(group: Group, path: str, consumer: _Consumer) -> _Problem:
    hessian = consumer.hessian
    damping = max(DAMPING * float(hessian.diagonal().mean()), 1e-12)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian + damping * torch.eye(len(hessian)).to(hessian)))
    weight = consumer.layer.weight.detach().double().flatten(1)
    per_input = weight.shape[1] // consumer.layer.weight.shape[1]
    units = torch.arange(group.num_units)[:, None]
    inputs = torch.cat(
        [s.start + units * s.width + torch.arange(s.width) for s in group.slices if s.module == path and s.dim == "in"],
        1,
    )
    columns = (inputs[:, :, None] * per_input + torch.arange(per_input)).flatten(1)
    scale = consumer.sensitivity.sqrt()[:, None]
    return _Problem(weight * scale, inverse, columns.to(weight.device))
