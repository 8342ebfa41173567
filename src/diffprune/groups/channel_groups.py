"""Groups of channels in convolutional UNets, from the dependency graph of torch-pruning."""

import contextlib
import io
import math
import warnings
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from typing import Any

import torch
import torch_pruning
from torch import nn

from diffprune.architectures.families import Dim, Family
from diffprune.artifact.slicing import CONVOLUTIONS, is_weighted, layer_type, linear_below, on_meta, width
from diffprune.errors import ModelError
from diffprune.groups.group import Group, Slice


def channel_groups(denoiser: nn.Module, family: Family, *, without: Sequence[Group]) -> list[Group]:
    """Return the groups of channels of a denoiser.

    Traced on a copy on the meta device, so no weights are needed. Channels that pass GroupNorms are balanced over
    their norm groups. A group is skipped where its channels do not divide evenly over the norm groups, or where a
    parameter belongs to a layer that cannot be resized.
    without: groups found already; the output channels of their layers are skipped.
    Source: DepGraph (Fang et al. 2023), by torch-pruning.
    """
    shadow = on_meta(denoiser)
    shadow.requires_grad_(True)
    inputs = family.example_inputs(shadow, 1, torch.device("meta"))
    with torch.enable_grad(), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Unwrapped parameters")  # groups with one are skipped below
        graph = torch_pruning.DependencyGraph().build_dependency(shadow, inputs)
    names = {module: name for name, module in shadow.named_modules()}
    known = {part.module for group in without for part in group.slices if part.dim == "out"}
    skipped = {path for path in _head_projections(shadow) if path not in known}
    skipped |= {path for path in names.values() if any(fnmatch(path, pattern) for pattern in family.fixed_outputs)}
    fixed = [shadow.get_submodule(path) for path in sorted(known | skipped)]
    roots = graph.get_all_groups(ignored_layers=fixed, root_module_types=[*CONVOLUTIONS, nn.ConvTranspose2d, nn.Linear])
    groups = [_group(graph, _narrowest(graph, root), names, shadow) for root in roots]
    return [g for g in groups if g is not None and g.num_units % g.balance == 0 and _fits(g, shadow)]


def _head_projections(model: nn.Module) -> Iterable[str]:
    """Yield the paths of the query, key and value projections of multi-head attentions: their rows are heads."""
    for path, module in model.named_modules():
        if hasattr(module, "to_q") and getattr(module, "heads", 1) > 1:
            yield from (f"{path}.{name}" for name in ("to_q", "to_k", "to_v") if linear_below(module, name))


def _narrowest(graph: Any, group: Any) -> Any:
    """Re-root a group at its narrowest producer; a wider producer has several rows per unit (scale and shift)."""
    root = min((item for item in group if _is_output(graph, item)), key=lambda item: len(item.idxs))
    if len(root.idxs) == len(group[0].idxs):
        return group
    handler = root.dep.handler
    return graph.get_pruning_group(root.dep.target.module, handler, list(range(len(root.idxs))))


def _fits(group: Group, model: nn.Module) -> bool:
    """Return whether every layer has the traced rows; a reshape of positions into channels breaks that."""
    return all(
        part.start + group.num_units * part.width <= width(model.get_submodule(part.module), part.dim)
        for part in group.slices
    )


def _group(graph: Any, traced: Any, names: dict[nn.Module, str], model: nn.Module) -> Group | None:
    """Convert a traced group; None where it contains a parameter outside the supported layers."""
    num_units = len(traced[0].idxs)
    slices: list[Slice] = []
    balance = 1
    for item in traced:
        module = item.dep.target.module
        if layer_type(module) is None:
            if isinstance(module, nn.Parameter) or any(True for _ in module.parameters(recurse=False)):
                return None
            continue
        dim: Dim = "out" if graph.is_out_channel_pruning_fn(item.dep.handler) else "in"
        pairs = sorted(zip(item.root_idxs, item.idxs, strict=True))
        for start, size in _runs(pairs, num_units, names[module]):
            slices.append(Slice(names[module], dim, start, size))
        if isinstance(module, nn.GroupNorm):
            balance = math.lcm(balance, module.num_groups)
    producers = [s.module for s in slices if s.dim == "out" and is_weighted(model.get_submodule(s.module))]
    order = {name: position for position, name in enumerate(names.values())}
    return Group(
        name=min(producers, key=order.__getitem__),
        kind="channels",
        num_units=num_units,
        slices=tuple(sorted(set(slices), key=lambda s: (order[s.module], s.dim, s.start))),
        balance=balance,
    )


def _runs(pairs: list[tuple[int, int]], num_units: int, name: str) -> Iterable[tuple[int, int]]:
    """Yield (start, size) of the runs of one layer in which unit u has the rows from start + u * size.

    pairs: (unit, row), sorted. Raises ModelError where the rows have another layout.
    """
    per_unit, rest = divmod(len(pairs), num_units)
    rows = [[row for unit, row in pairs[u * per_unit : (u + 1) * per_unit]] for u in range(num_units)]
    first, second = rows[0], rows[min(1, num_units - 1)]
    size = second[0] - first[0] if num_units > 1 else per_unit
    starts = first[::size] if size > 0 else []
    expected = [[start + u * size + k for start in starts for k in range(size)] for u in range(num_units)]
    if rest or expected != rows:
        raise ModelError(f"{name}: its rows are not in the order of the units of its group, which is not supported")
    return [(start, size) for start in starts]


def _is_output(graph: Any, item: Any) -> bool:
    module = item.dep.target.module
    return is_weighted(module) and graph.is_out_channel_pruning_fn(item.dep.handler)
