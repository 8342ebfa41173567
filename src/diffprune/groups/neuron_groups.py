"""Groups of feed-forward neurons: rows of the first projections, columns of the last."""

from collections.abc import Sequence

from torch import nn

from diffprune.architectures.layouts import FeedForwardLayout
from diffprune.artifact.slicing import RESPONSE_NORMS, is_weighted, layer_below, width
from diffprune.groups.group import Group, Slice

ELEMENTWISE = (nn.GELU, nn.SiLU, nn.ReLU, nn.Mish, nn.Tanh, nn.Dropout, nn.Identity)
"""Elementwise modules, allowed between the linear layers of a sequence."""


def neuron_group(path: str, module: nn.Module, layouts: Sequence[FeedForwardLayout]) -> Group | None:
    """Return the group of neurons of one feed-forward; None where the module is not a feed-forward."""
    if isinstance(module, nn.Sequential):
        return _of_sequence(path, module)
    for layout in layouts:
        if layout.only_in not in (None, type(module).__name__):
            continue
        layers = {name: layer_below(module, name) for name in (*layout.firsts, *layout.between, layout.last)}
        known = {
            name: layer
            for name, layer in layers.items()
            if layer is not None and (is_weighted(layer) or name in layout.between)
        }
        if len(known) == len(layers):
            return _group(path, known, layout)
    return None


def _group(path: str, layers: dict[str, nn.Module], layout: FeedForwardLayout) -> Group | None:
    neurons = width(layers[layout.last], "in")
    produced = {name: width(layers[name], "out") for name in (*layout.firsts, *layout.between)}
    if neurons < 2 or any(size not in (neurons, 2 * neurons) for size in produced.values()):
        return None
    slices = [
        Slice(f"{path}.{name}", "out", start, 1) for name, size in produced.items() for start in range(0, size, neurons)
    ]
    last = Slice(f"{path}.{layout.last}", "in", 0, 1)
    return Group(f"{path}.{layout.firsts[0]}", "neurons", neurons, (*slices, last))


def _of_sequence(path: str, sequence: nn.Sequential) -> Group | None:
    first, last = (sequence[0], sequence[-1]) if len(sequence) > 1 else (None, None)
    between = list(sequence)[1:-1]
    if not isinstance(first, nn.Linear) or not isinstance(last, nn.Linear) or first.out_features != last.in_features:
        return None
    if not all(isinstance(module, (*ELEMENTWISE, *RESPONSE_NORMS)) for module in between):
        return None
    norms = [str(i) for i, module in enumerate(sequence) if isinstance(module, RESPONSE_NORMS)]
    producers = [Slice(f"{path}.{name}", "out", 0, 1) for name in ("0", *norms)]
    consumer = Slice(f"{path}.{len(sequence) - 1}", "in", 0, 1)
    return Group(f"{path}.0", "neurons", last.in_features, (*producers, consumer))
