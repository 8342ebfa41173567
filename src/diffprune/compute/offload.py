"""Offload weights: copy each layer's parameters to the device for its forward passes only."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def offloaded_weights(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Compute `model` on `device`, with inputs on that device, while its weights remain on their own device.

    Unlike the offloading of diffusers and accelerate, backward passes work: gradients arrive on the weights' device.
    The graph holds copies of the weights that it needs; with gradient checkpointing, those of one block at a time.
    """
    modules = [_OffloadedModule(module, device) for module in model.modules()]
    handles = [handle for offloaded in modules for handle in offloaded.register()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for offloaded in modules:
            offloaded.drop_copies()


class _OffloadedModule:
    """A module whose own parameters and buffers are on the device while any of its forward passes runs.

    Forward passes overlap in compensation, which pauses them inside of modules.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.module, self.device = module, device
        self.names = [name for name, value in {**module._parameters, **module._buffers}.items() if value is not None]
        self.num_running = 0

    def register(self) -> list[Any]:
        """Register hooks on a module that has weights of its own; return their handles."""
        if not self.names:
            return []
        return [
            self.module.register_forward_pre_hook(self._enter, prepend=True),
            self.module.register_forward_hook(self._leave, always_call=True),
        ]

    def drop_copies(self) -> None:
        """Drop the copies on the device, whatever still runs."""
        self.num_running = 0
        for name in self.names:
            vars(self.module).pop(name, None)

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        if self.num_running == 0:
            self._load_copies()
        self.num_running += 1

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.num_running -= 1
        if self.num_running <= 0:
            self.drop_copies()

    def _load_copies(self) -> None:
        for name in self.names:
            original = self.module._parameters.get(name, self.module._buffers.get(name))
            assert original is not None
            copied = original.to(self.device, copy=True)
            vars(self.module)[name] = copied  # attribute lookup finds it before `_parameters`
