"""Feed-forward neurons as groups: rows of the first projections, columns of the last."""

from collections.abc import Sequence

from torch import nn

from diffprune.groups.group import Group, Slice
from diffprune.models.resize import linear_below

FEED_FORWARDS: Sequence[tuple[tuple[str, ...], str]] = ((("net.0.proj",), "net.2"),)
"""First projections and last projection, by their names below a feed-forward.

A first projection gives one value per neuron, or two where it is gated: value rows, then as many gate rows.
"""


def neurons_of(path: str, module: nn.Module) -> Group | None:
    """The neurons of one feed-forward; None where the module is none."""
    for firsts, last in FEED_FORWARDS:
        first_layers = [layer for name in firsts if (layer := linear_below(module, name)) is not None]
        last_layer = linear_below(module, last)
        if last_layer is None or len(first_layers) < len(firsts):
            continue
        neurons = last_layer.in_features
        if any(layer.out_features not in (neurons, 2 * neurons) for layer in first_layers):
            continue
        slices = [
            Slice(f"{path}.{name}", "out", start, 1)
            for name, layer in zip(firsts, first_layers, strict=True)
            for start in range(0, layer.out_features, neurons)
        ]
        return Group(f"{path}.{firsts[0]}", "neurons", neurons, (*slices, Slice(f"{path}.{last}", "in", 0, 1)))
    return None
