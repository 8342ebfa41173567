"""What a layer's output depends on, position by position: rows of a least-squares problem."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from diffprune.artifact.slicing import CONVOLUTIONS


@dataclass(frozen=True)
class Places:
    """Sampled positions of a layer's output: entry of the first dimension and flat position within it, (rows,) each."""

    entries: Tensor
    positions: Tensor


def is_supported(layer: nn.Module) -> bool:
    """Whether a layer is a linear function of windows that are known here."""
    if isinstance(layer, CONVOLUTIONS):
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return isinstance(layer, nn.Linear)


def draw_places(layer: nn.Module, x: Tensor, per_entry: int, generator: torch.Generator) -> Places:
    """At most `per_entry` different positions for each entry of an output's first dimension, all where there are fewer.

    x: the layer's input, (N, C, ...) of a convolution, (N, ..., C) of a linear layer.
    """
    num = math.prod(
        _windows(layer, x).shape[2 : 2 + len(layer.kernel_size)] if isinstance(layer, CONVOLUTIONS) else x.shape[1:-1]
    )
    taken = min(num, per_entry)
    order = torch.rand(len(x), num, generator=generator).argsort(1)[:, :taken]
    entries = torch.arange(len(x)).repeat_interleave(taken)
    return Places(entries.to(x.device), order.flatten().to(x.device))


def outputs_at(layer: nn.Module, output: Tensor, places: Places) -> Tensor:
    """A layer's output at the sampled positions: (rows, C)."""
    if isinstance(layer, CONVOLUTIONS):
        return output.flatten(2)[places.entries, :, places.positions]
    return output.reshape(len(output), -1, output.shape[-1])[places.entries, places.positions]


def inputs_at(layer: nn.Module, x: Tensor, places: Places) -> Tensor:
    """What the layer's output at the sampled positions depends on, as its weight has it: (rows, groups, d)."""
    if not isinstance(layer, CONVOLUTIONS):
        return x.reshape(len(x), -1, x.shape[-1])[places.entries, places.positions][:, None]
    windows = _windows(layer, x)
    where = torch.unravel_index(places.positions, windows.shape[2 : 2 + len(layer.kernel_size)])
    at: tuple[Any, ...] = (places.entries, slice(None), *where)
    rows = windows[at]
    return rows.reshape(len(rows), layer.groups, -1)


def _windows(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """A view (N, C, positions ..., kernel ...) of a convolution's padded input."""
    assert not isinstance(layer.padding, str)
    windows = functional.pad(x, [side for padding in reversed(layer.padding) for side in (padding, padding)])
    for axis, (size, step, spread) in enumerate(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True), 2):
        windows = windows.unfold(axis, (size - 1) * spread + 1, step)[..., ::spread]
    return windows
