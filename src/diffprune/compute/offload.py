"""Offload weights: copy each layer's parameters to the device for its forward pass only."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn


@contextmanager
def offloaded_weights(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Compute `model` on `device`, with inputs on that device, while its weights remain on their own device.

    Unlike the offloading of diffusers and accelerate, backward passes work: gradients arrive on the weights' device.
    The graph holds copies of the weights that it needs; with gradient checkpointing, those of one block at a time.
    """
    handles: list[Any] = []
    for module in model.modules():
        own = {**module._parameters, **module._buffers}
        names = [name for name, value in own.items() if value is not None]
        if names:
            load = partial(_load_copies, names=names, device=device)
            handles.append(module.register_forward_pre_hook(load, prepend=True))
            handles.append(module.register_forward_hook(partial(_drop_copies, names=names), always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _load_copies(module: nn.Module, inputs: Any, *, names: list[str], device: torch.device) -> None:
    for name in names:
        original = module._parameters.get(name, module._buffers.get(name))
        assert original is not None
        vars(module)[name] = original.to(device, copy=True)  # attribute lookup finds it before `_parameters`


def _drop_copies(module: nn.Module, inputs: Any, output: Any, *, names: list[str]) -> None:
    for name in names:
        vars(module).pop(name, None)
