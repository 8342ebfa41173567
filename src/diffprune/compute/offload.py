"""A model whose weights stay where they are: each layer's own come to the device for its forward pass alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn


@contextmanager
def weights_on_demand(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Let `model` compute on `device` while it lasts, with inputs from there.

    Backward passes work, other than with the offloading of diffusers and accelerate: gradients arrive where the weights
    are. They keep the copies of the weights they need; with gradient checkpointing, those of one block at a time.
    """
    handles: list[Any] = []
    for module in model.modules():
        own = {**module._parameters, **module._buffers}
        names = [name for name, value in own.items() if value is not None]
        if names:
            bring = partial(_bring, names=names, device=device)
            handles.append(module.register_forward_pre_hook(bring, prepend=True))
            handles.append(module.register_forward_hook(partial(_drop, names=names), always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _bring(module: nn.Module, inputs: Any, *, names: list[str], device: torch.device) -> None:
    for name in names:
        home = module._parameters.get(name, module._buffers.get(name))
        assert home is not None
        vars(module)[name] = home.to(device, copy=True)  # is found before the one in `_parameters`


def _drop(module: nn.Module, inputs: Any, output: Any, *, names: list[str]) -> None:
    for name in names:
        vars(module).pop(name, None)
