"""Outline of a denoiser for `inspect`: class, parameters, MACs and prunable units of each block."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from diffprune.compute.cost import layer_cost_of
from diffprune.groups import Group


def outline(denoiser: nn.Module, groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Return one row per part, parents first: path, class_name, params, macs, and prunable units by kind.

    Parts are the top-level modules and, inside them, the entries of block lists. A group counts for the part that
    contains its name, so channels shared by several blocks count for the first.
    """
    macs = layer_cost_of(denoiser).macs_by_layer
    rows = []
    for path, module in _parts("", denoiser):
        inside = f"{path}."
        units: Counter[str] = Counter()
        for group in groups:
            if group.name.startswith(inside) or group.name == path:
                units[group.kind] += group.num_units
        rows.append(
            {
                "path": path,
                "class_name": type(module).__name__,
                "params": sum(p.numel() for p in module.parameters()),
                "macs": sum(n for layer, n in macs.items() if layer.startswith(inside) or layer == path),
                "units": dict(units),
            }
        )
    return rows


def _parts(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if not any(True for _ in child.parameters()):
            continue
        path = f"{prefix}{name}"
        yield path, child
        if _is_block_list(child) or any(_is_block_list(below) for below in child.children()):
            yield from _parts(f"{path}.", child)


def _is_block_list(module: nn.Module) -> bool:
    """Return whether each entry of a list has several layers with weights."""
    return isinstance(module, nn.ModuleList) and all(_num_layers(entry) > 1 for entry in module)


def _num_layers(module: nn.Module) -> int:
    return sum(1 for below in module.modules() if any(True for _ in below.parameters(recurse=False)))
