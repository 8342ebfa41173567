"""Scores: one number per unit of each group, and how weights are summed into them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diffprune.groups import Group
from diffprune.models.resize import AXES, is_weighted, layer_type

__all__ = ["Scores", "is_weighted", "sum_by_unit"]


@dataclass(frozen=True)
class Scores:
    """Scores of all groups; units with lower scores go first.

    values: group name -> float64 (num_units,). details: facts about how they came about, for `run.json`.
    """

    criterion: str
    values: Mapping[str, Tensor]
    details: Mapping[str, Any] = field(default_factory=dict)


def sum_by_unit(group: Group, model: nn.Module, terms: Mapping[str, Tensor]) -> Tensor:
    """Sum terms over all weights that belong to each unit, in float64.

    terms: path of a layer -> one term per element of its weight; layers that are missing do not count.
    A weight counts for the unit of its row and for the unit of its column. Returns (num_units,) on the CPU.
    """
    total = torch.zeros(group.num_units, dtype=torch.float64)
    for part in group.slices:
        if part.module not in terms:
            continue
        kind = layer_type(model.get_submodule(part.module))
        assert kind is not None
        term = terms[part.module]
        axis = AXES[kind]["weight"][part.dim]
        others = [d for d in range(term.ndim) if d != axis]
        rows = term.double().sum(others) if others else term.double()
        mine = rows[part.start : part.start + group.num_units * part.width]
        total += mine.view(group.num_units, part.width).sum(1).cpu()
    return total
