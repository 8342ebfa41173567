"""What the tests of the zoo share: tiny models, random inputs, ragged choices, masked models."""

import copy
from collections.abc import Iterable
from typing import Any

import diffusers
import torch
import torch_pruning
from torch import Tensor, nn

from diffprune.architectures.example_inputs import derived_inputs as inputs
from diffprune.architectures.families import family_of
from diffprune.artifact.slicing import is_weighted
from diffprune.groups import Group, kept_indices
from tests.zoo.tiny_configs import CONFIGS


def tiny_model(name: str, **changes: Any) -> Any:
    """A seeded model of a class, in eval mode; parameters that start as constants are made to matter.

    changes: entries of its tiny configuration.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(diffusers, name)(**{**CONFIGS[name], **changes}).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.numel() == 1 or parameter.std() < 1e-6:
                    parameter.add_(0.3 * torch.randn(parameter.shape))
    return model


def random_inputs(model: nn.Module, *, num: int = 2, seed: int = 1) -> dict[str, Any]:
    """The example inputs of a class with random values; masks and whole numbers stay as they are."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: drawn(part) for name, part in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(drawn(part) for part in value)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return torch.randn(value.shape, generator=generator)

    inputs: dict[str, Any] = drawn(family_of(model).example_inputs(model, num, torch.device("cpu")))
    return inputs


def outputs_of(model: nn.Module) -> list[Tensor]:
    """Everything that a forward pass gives."""

    def flat(value: Any) -> Iterable[Tensor]:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            for part in value:
                yield from flat(part)

    with torch.no_grad():
        given = model(**random_inputs(model))
    return list(flat(given if isinstance(given, Tensor | list | tuple) else given.to_tuple()))


def largest_difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest absolute difference of two lists of outputs."""
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


def ragged(groups: Iterable[Group]) -> dict[str, list[int]]:
    """A random choice: between a quarter and a half of every balanced part goes, at least one unit."""
    generator = torch.Generator().manual_seed(0)
    kept = {}
    for group in groups:
        size = group.num_units // group.balance
        share = torch.rand((), generator=generator).item() / 4 + 0.25
        rows: list[int] = []
        for part in range(group.balance):
            order = torch.randperm(size, generator=generator)[min(max(1, int(size * share)), size - 1) :]
            rows += sorted((order + part * size).tolist())
        kept[group.name] = rows
    return kept


class KeptNorm(nn.Module):
    """A dense norm over all heads that looks at the rows of the kept ones alone, as the norm of the smaller model."""

    def __init__(self, small: nn.Module, rows: Tensor) -> None:
        super().__init__()
        self.small, self.rows = small, rows

    def forward(self, values: Tensor) -> Tensor:
        return torch.zeros_like(values).index_copy(-1, self.rows, self.small(values[..., self.rows]))


def masked(model: nn.Module, small: nn.Module, groups: tuple[Group, ...], kept: dict[str, list[int]]) -> nn.Module:
    """The dense model in which nothing that takes the removed units listens to them, nor any norm over all heads."""
    dense = copy.deepcopy(model)
    rows = kept_indices(groups, kept, model).rows
    for group in groups:
        for part in (s for s in group.slices if not is_weighted(model.get_submodule(s.module))):
            parent, _, name = part.module.rpartition(".")
            norm = KeptNorm(small.get_submodule(part.module), rows[part.module, "out"])
            setattr(dense.get_submodule(parent), name, norm)
    with torch.no_grad():
        for group in groups:
            for part in (s for s in group.slices if s.dim == "in"):
                weight: Any = dense.get_submodule(part.module).weight
                for unit in set(range(group.num_units)) - set(kept[group.name]):
                    weight[:, part.start + unit * part.width : part.start + (unit + 1) * part.width] = 0
    return dense


def uniform(groups: Iterable[Group], ratio: float) -> dict[str, list[int]]:
    """The last units of every balanced part, by the published rule."""
    kept = {}
    for group in groups:
        size = group.num_units // group.balance
        removed = min((group.num_units - int(group.num_units * (1 - ratio) + 1e-9)) // group.balance, size - 1)
        kept[group.name] = [unit for unit in range(group.num_units) if unit % size >= removed]
    return kept


SMALL_INPUTS = {"SIDE": 8, "FRAMES": 3, "TEXT_TOKENS": 7}
"""Example inputs as small as the models are: what to set in `diffprune.architectures.example_inputs.derived_inputs`."""


def small_inputs() -> None:
    """Set them for good, in a process of its own."""
    for name, size in SMALL_INPUTS.items():
        setattr(inputs, name, size)


def pruned_by_torch_pruning(model: nn.Module, groups: Iterable[Group], kept: dict[str, list[int]]) -> nn.Module:
    """The same channels removed by torch-pruning's own surgery, group by group."""
    reference = copy.deepcopy(model)
    reference.requires_grad_(True)
    graph = torch_pruning.DependencyGraph().build_dependency(reference, random_inputs(model))
    for group in groups:
        root = reference.get_submodule(group.name)
        place = next(s for s in group.slices if s.module == group.name and s.dim == "out")
        removed = [u for u in range(group.num_units) if u not in kept[group.name]]
        rows = [place.start + u * place.width + k for u in removed for k in range(place.width)]
        prune = torch_pruning.pruner.function.PrunerBox[torch_pruning.ops.module2type(root)].prune_out_channels
        graph.get_pruning_group(root, prune, rows).prune()
    return reference
