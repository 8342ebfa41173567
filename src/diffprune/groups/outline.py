"""A denoiser block by block: what each holds, costs and can lose."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from diffprune.compute.cost import macs_by_layer
from diffprune.groups import Group


def outline(denoiser: nn.Module, groups: Sequence[Group]) -> list[dict[str, Any]]:
    """One row per part, parents before their children: path, class_name, params, macs, and prunable units by kind.

    Parts are the modules at the top and, below them, the entries of lists of blocks. A group counts where its name
    lies: channels that several blocks share belong to the first.
    """
    macs = macs_by_layer(denoiser)
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
        if _is_list(child) or any(_is_list(below) for below in child.children()):
            yield from _parts(f"{path}.", child)


def _is_list(module: nn.Module) -> bool:
    """Whether it lists blocks: entries of several layers with weights, not the layers of one block."""
    return isinstance(module, nn.ModuleList) and all(_num_layers(entry) > 1 for entry in module)


def _num_layers(module: nn.Module) -> int:
    return sum(1 for below in module.modules() if any(True for _ in below.parameters(recurse=False)))
