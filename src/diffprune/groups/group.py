"""A group: units that can only be removed together, by name and index."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffprune.architectures.families import Dim
from diffprune.artifact.slicing import KeptIndices, LayerDim, number, width
from diffprune.options import Kind


@dataclass(frozen=True)
class Slice:
    """Where the units of a group lie in one dimension of one layer.

    Unit u is the `width` rows (`out`) or columns (`in`) from `start + u * width` on.
    """

    module: str
    dim: Dim
    start: int
    width: int


@dataclass(frozen=True)
class Count:
    """A whole number that a module holds and that falls by `per_unit` with every unit removed."""

    module: str
    attribute: str
    per_unit: int


@dataclass(frozen=True)
class Group:
    """Units that are removed from all their slices at once.

    name: path of the first layer that produces the units.
    balance: number of equal parts (of consecutive units) that must lose the same number; 1 is no constraint.
    least: units that stay whatever is asked for.
    rotary: path of the attention whose heads the units are, where it is given rotary tables for all heads.
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
    """What remains of the model when each group keeps the named units only.

    kept_units: group name -> units to keep; groups that are not named keep all.
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
            now = numbers.get((count.module, count.attribute))
            before = number(model.get_submodule(count.module), count.attribute) if now is None else now
            numbers[count.module, count.attribute] = (before or 0) - int(removed.sum()) * count.per_unit
    return KeptIndices({place: mask.nonzero().flatten() for place, mask in masks.items()}, numbers, rotary)
