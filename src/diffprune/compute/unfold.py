"""Unfold a layer's input into the rows of a least-squares problem, one row per sampled output position."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from diffprune.artifact.slicing import CONVOLUTIONS


@dataclass(frozen=True)
class OutputPositions:
    """Sampled positions of a layer's output: index in the first dimension and flat position in it, (rows,) each."""

    entries: Tensor
    positions: Tensor


def is_supported(layer: nn.Module) -> bool:
    """Return whether `inputs_at` supports a layer: linear layers, and convolutions padded with zeros by numbers."""
    if isinstance(layer, CONVOLUTIONS):
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return isinstance(layer, nn.Linear)


def sample_positions(layer: nn.Module, x: Tensor, per_entry: int, generator: torch.Generator) -> OutputPositions:
    """Draw up to `per_entry` distinct positions for each entry of the output's first dimension.

    x: the layer's input, (N, C, ...) for a convolution, (N, ..., C) for a linear layer.
    """
    num = math.prod(
        _windows(layer, x).shape[2 : 2 + len(layer.kernel_size)] if isinstance(layer, CONVOLUTIONS) else x.shape[1:-1]
    )
    num_drawn = min(num, per_entry)
    order = torch.rand(len(x), num, generator=generator).argsort(1)[:, :num_drawn]
    entries = torch.arange(len(x)).repeat_interleave(num_drawn)
    return OutputPositions(entries.to(x.device), order.flatten().to(x.device))


def outputs_at(layer: nn.Module, output: Tensor, sampled: OutputPositions) -> Tensor:
    """Return a layer's output at the sampled positions, (rows, C)."""
    if isinstance(layer, CONVOLUTIONS):
        return output.flatten(2)[sampled.entries, :, sampled.positions]
    return output.reshape(len(output), -1, output.shape[-1])[sampled.entries, sampled.positions]


def inputs_at(layer: nn.Module, x: Tensor, sampled: OutputPositions) -> Tensor:
    """Return the inputs that the output depends on at the sampled positions, (rows, groups, d).

    groups: of a grouped convolution, else 1. d: number of inputs of one output, in the order of the flattened weight.
    """
    if not isinstance(layer, CONVOLUTIONS):
        return x.reshape(len(x), -1, x.shape[-1])[sampled.entries, sampled.positions][:, None]
    windows = _windows(layer, x)
    coordinates = torch.unravel_index(sampled.positions, windows.shape[2 : 2 + len(layer.kernel_size)])
    index: tuple[Any, ...] = (sampled.entries, slice(None), *coordinates)
    rows = windows[index]
    return rows.reshape(len(rows), layer.groups, -1)


def _windows(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """Return a view (N, C, positions ..., kernel ...) of a convolution's padded input."""
    assert not isinstance(layer.padding, str)
    windows = functional.pad(x, [side for padding in reversed(layer.padding) for side in (padding, padding)])
    for axis, (size, step, spread) in enumerate(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True), 2):
        windows = windows.unfold(axis, (size - 1) * spread + 1, step)[..., ::spread]
    return windows
