"""Allocation: choose the units to keep by their scores and the ratios of their groups."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from diffprune.criteria import Scores
from diffprune.errors import OptionError
from diffprune.groups import Group
from diffprune.options import BudgetOptions
from diffprune.options.budget_options import matches
from diffprune.planning.widths import has_multiples, rounded

_ROUNDING = 1e-9
"""Compensates the binary rounding of 1 - ratio, so that ratio 0.9 removes 90 of 100 units, not 91."""


def allocate(
    groups: Sequence[Group], scores: Scores, options: BudgetOptions, *, progress: float = 1.0
) -> dict[str, tuple[int, ...]]:
    """Return the units to keep: group name -> indices, ascending.

    Each balanced part (norm group) of a group loses the same number of its lowest-scored units. `options.ranking`
    determines the number:

    - local: n // parts, with n = C - int(C * (1 - ratio)) of C units (the published rule: Fang et al. 2023, DepGraph);
    - global: units of all groups of one kind are ranked together; the total removed is the sum of C * ratio;
    - isomorphic: the same among groups whose layers have the same names (except for numbers) and sizes (Fang et al.
      2024, Isomorphic Pruning).

    A list whose blocks can all be removed loses C * ratio blocks, rounded to the nearest: a single block is removed at
    ratio 0.5.

    With `options.round_to`, each group of channels or neurons then keeps the nearest allowed number (`rounded`). The
    total removed may then differ from the ratio.

    progress: share of the ratio to reach, in (0, 1], for pruning in rounds.
    """
    ratios = {g.name: options.ratio_of(producers(g)) * progress for g in groups}
    values = {g.name: scores.values[g.name].view(g.balance, -1) for g in groups}
    removed = {g.name: min(_share_of(g, ratios[g.name]), _limit(g, options)) for g in groups}
    if options.ranking != "local":
        for pool in _pools([g for g in groups if ratios[g.name] > 0], options):
            removed |= _rank_together(pool, ratios, values, options)
    for group in groups if options.round_to is not None else ():
        removed[group.name] = _rounded(group, removed[group.name], values[group.name], options)
    return {g.name: _highest(values[g.name], removed[g.name]) for g in groups}


def check_patterns(groups: Sequence[Group], options: BudgetOptions) -> None:
    """Raise OptionError for patterns that match no layer, kinds without units, and multiples above every width."""
    layers = {layer for g in groups for layer in producers(g)}
    unmatched = [p for p in options.patterns() if not matches(p, sorted(layers))]
    absent = [kind for kind in options.kinds or () if kind not in {g.kind for g in groups}]
    lines = [f"  kinds: got {kind}, but the model has no {kind} that can be removed" for kind in absent]
    lines += [
        f"  {p!r} matches no prunable layer; an example of a layer is {min(layers, default='none')}" for p in unmatched
    ]
    if isinstance(width := options.round_to, int) and not any(has_multiples(g, width) for g in groups):
        lines.append(f"  round_to: no group of channels or neurons has a multiple of {width} below its width")
    if lines:
        raise OptionError("the options do not match the model:\n" + "\n".join(lines))


def producers(group: Group) -> list[str]:
    """Return the layers whose output rows are the units of a group."""
    return [part.module for part in group.slices if part.dim == "out"] or [group.name]


def _share_of(group: Group, ratio: float) -> int:
    """Return the number of units to remove from each part."""
    if group.least == 0:
        return int(group.num_units * ratio + 0.5)
    return (group.num_units - int(group.num_units * (1 - ratio) + _ROUNDING)) // group.balance


def _limit(group: Group, options: BudgetOptions) -> int:
    """Return the largest number of units that may be removed from each part."""
    minimum = -(-options.min_units // group.balance) if options.min_units > 1 else 0
    least = max(group.least, minimum)
    by_number = group.num_units // group.balance - least
    by_share = int(group.num_units * (options.max_ratio or 1.0) + _ROUNDING) // group.balance
    return max(0, min(by_number, by_share))


def _rounded(group: Group, removed: int, values: Tensor, options: BudgetOptions) -> int:
    """Return the number of units to remove from each part, so that an allowed number is kept."""
    assert isinstance(options.round_to, int)
    removed_before = int(values.isneginf().sum(dim=1).min())  # by earlier rounds
    removable = max(removed_before, _limit(group, options))
    at_most, least = (group.num_units - num * group.balance for num in (removed_before, removable))
    kept = group.num_units - removed * group.balance
    return (group.num_units - rounded(kept, group, options.round_to, least, at_most)) // group.balance


def _pools(groups: Iterable[Group], options: BudgetOptions) -> Iterable[list[Group]]:
    """Yield the groups whose units are ranked together."""
    pools: dict[object, list[Group]] = {}
    for group in groups:
        key = group.kind if options.ranking == "global" else _shape(group)
        pools.setdefault(key, []).append(group)
    return pools.values()


def _shape(group: Group) -> tuple[object, ...]:
    """Return the properties that isomorphic groups share."""
    layers = sorted((_role(s.module), s.dim, s.start, s.width) for s in group.slices)
    return (group.kind, group.num_units, group.balance, tuple(layers))


def _role(path: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in path.split("."))


def _rank_together(
    pool: Sequence[Group], ratios: Mapping[str, float], values: Mapping[str, Tensor], options: BudgetOptions
) -> dict[str, int]:
    """Return the number of units to remove from each part of the groups of a pool, lowest scores first.

    The j-th lowest units of all parts of a group are removed together, ranked by their mean score.
    """
    target = sum(group.num_units * ratios[group.name] for group in pool)
    candidates = []
    for position, group in enumerate(pool):
        means = values[group.name].sort(dim=1).values.mean(0)[: _limit(group, options)]
        candidates += [(float(score), position, group.balance) for score in means]
    removed = dict.fromkeys((g.name for g in pool), 0)
    total = 0
    for _, position, size in sorted(candidates):
        if total + size > target + _ROUNDING:
            break
        removed[pool[position].name] += 1
        total += size
    return removed


def _highest(values: Tensor, removed: int) -> tuple[int, ...]:
    """Return the units to keep if each part loses its `removed` lowest-scored units.

    values: scores, (parts, units per part).
    """
    order = values.argsort(dim=1, stable=True)[:, removed:].sort(dim=1).values
    units = order + torch.arange(len(values))[:, None] * values.shape[1]
    return tuple(units.flatten().tolist())
