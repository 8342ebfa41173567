"""The value `Scores`, one number per unit of each group, and the sum of per-weight terms into units."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diffprune.artifact.slicing import AXES, layer_type
from diffprune.groups import Group


@dataclass(frozen=True)
class Scores:
    """Scores of all groups; units with the lowest scores are removed first.

    values: group name -> float64 (num_units,). details: facts about the score pass, for `run.json`.
    """

    criterion: str
    values: Mapping[str, Tensor]
    details: Mapping[str, Any] = field(default_factory=dict)


def sums_by_unit(
    groups: Sequence[Group], model: nn.Module, layers: Iterable[str], term: Callable[[str], Tensor]
) -> dict[str, Tensor]:
    """Sum terms over all weights of each unit: group name -> (num_units,), float64 on the CPU.

    layers: paths of the layers whose weights count. term: path -> one term per element of the weight, called for one
    layer at a time. A weight counts for the unit of its row and for the unit of its column.
    """
    totals = {group.name: torch.zeros(group.num_units, dtype=torch.float64) for group in groups}
    parts = defaultdict(list)
    for group in groups:
        for part in group.slices:
            parts[part.module].append((group, part))
    for path in layers:
        kind = layer_type(model.get_submodule(path))
        assert kind is not None
        terms = term(path)
        for group, part in parts[path]:
            axis = AXES[kind]["weight"][part.dim]
            others = [d for d in range(terms.ndim) if d != axis]
            rows = terms.sum(others, dtype=torch.float64) if others else terms.double()
            rows = rows[part.start : part.start + group.num_units * part.width]
            totals[group.name] += rows.view(group.num_units, part.width).sum(1).cpu()
    return totals
