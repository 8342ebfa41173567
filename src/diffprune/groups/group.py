"""The value `Group`: units of one kind, and the rows and columns of layers that each occupies."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffprune.architectures.families import Dim
from diffprune.artifact.slicing import KeptIndices, LayerDim, number, width
from diffprune.options import Kind


@dataclass(frozen=True)
class Slice:
    """The rows or columns of one layer that belong to the units of a group.

    Unit u has `width` rows (dim `out`) or columns (dim `in`), the first at `start + u * width`.
    """

    module: str
    dim: Dim
    start: int
    width: int


@dataclass(frozen=True)
class Count:
    """An integer attribute of a module that decreases by `per_unit` for each removed unit (such as `heads`)."""

    module: str
    attribute: str
    per_unit: int


@dataclass(frozen=True)
class Group:
    """Units of one kind at one place. Removing a unit removes its rows and columns from all slices.

    name: path of the first layer that produces the units.
    balance: number of equal parts (of consecutive units) that must lose equally many units; 1 for no constraint.
    least: minimum number of units kept.
    rotary: path of the attention where its rotary tables span all heads; None elsewhere.
    """

    name: str
    kind: Kind
    num_units: int
    slices: tuple[Slice, ...]
    balance: int = 1
    counts: tuple[Count, ...] = ()
    rotary: str | None = None
    least: int = 1

    def __repr__(self) -> str:
        return f"Group({self.name}, {self.num_units} {self.kind}, {len(self.slices)} slices)"


def kept_indices(groups: Iterable[Group], kept_units: Mapping[str, Sequence[int]], model: nn.Module) -> KeptIndices:
    """Return the rows, columns and integer attributes of a model in which each group keeps some units.

    kept_units: group name -> units to keep; other groups keep all units.
    """
    masks: dict[LayerDim, Tensor] = {}
    numbers: dict[tuple[str, str], int] = {}
    rotary: dict[str, tuple[int, ...]] = {}
    for group in groups:
        if group.name not in kept_units:
            continue
        removed = torch.ones(group.num_units, dtype=torch.bool)
        removed[torch.as_tensor(list(kept_units[group.name]), dtype=torch.long)] = False
        if group.rotary is not None:
            rotary[group.rotary] = tuple(kept_units[group.name])
        for part in group.slices:
            size = width(model.get_submodule(part.module), part.dim)
            mask = masks.setdefault((part.module, part.dim), torch.ones(size, dtype=torch.bool))
            rows = removed.repeat_interleave(part.width)
            mask[part.start : part.start + len(rows)] &= ~rows
        for count in group.counts:
            value = numbers.get((count.module, count.attribute))
            if value is None:
                value = number(model.get_submodule(count.module), count.attribute) or 0
            numbers[count.module, count.attribute] = value - int(removed.sum()) * count.per_unit
    return KeptIndices({place: mask.nonzero().flatten() for place, mask in masks.items()}, numbers, rotary)


def count_of(num: int, kind: str) -> str:
    """Return a number of units as text, such as `1 block` or `2 blocks`."""
    return f"{num} {kind if num != 1 else kind.removesuffix('s')}"
