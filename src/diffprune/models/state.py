"""Borrowing a model: put it on a device and in a mode for a while, and give it back as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def borrowed(model: nn.Module, device: torch.device, *, gradients: bool = False) -> Iterator[nn.Module]:
    """Yield `model` on `device`, in eval mode, with gradients switched on or off; restore all three after."""
    before = next(model.parameters()).device
    modes = {module: module.training for module in model.modules()}
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.to(device).eval().requires_grad_(gradients)
    try:
        yield model
    finally:
        model.to(before)
        for module, mode in modes.items():
            module.training = mode
        for parameter, value in wanted.items():
            parameter.requires_grad_(value)
