"""A group: units that can only be removed together, by name and index."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from diffprune.models.families import Dim
from diffprune.models.resize import Kept, width

Kind = Literal["channels", "heads", "blocks"]


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
class Group:
    """Units that are removed from all their slices at once.

    name: path of the first layer that produces the units.
    balance: number of equal parts (of consecutive units) that must lose the same number; 1 is no constraint.
    """

    name: str
    kind: Kind
    num_units: int
    slices: tuple[Slice, ...]
    balance: int = 1


def kept_indices(groups: Iterable[Group], kept_units: Mapping[str, Sequence[int]], model: nn.Module) -> Kept:
    """Rows and columns that remain in every layer when each group keeps the named units only.

    kept_units: group name -> units to keep; groups that are not named keep all.
    """
    masks: dict[tuple[str, Dim], Tensor] = {}
    for group in groups:
        if group.name not in kept_units:
            continue
        removed = torch.ones(group.num_units, dtype=torch.bool)
        removed[torch.as_tensor(list(kept_units[group.name]), dtype=torch.long)] = False
        for part in group.slices:
            size = width(model.get_submodule(part.module), part.dim)
            mask = masks.setdefault((part.module, part.dim), torch.ones(size, dtype=torch.bool))
            rows = removed.repeat_interleave(part.width)
            mask[part.start : part.start + len(rows)] &= ~rows
    return {place: mask.nonzero().flatten() for place, mask in masks.items()}
