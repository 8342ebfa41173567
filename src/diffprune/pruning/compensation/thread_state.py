"""PyTorch's per-thread settings: gradients, autocast and function modes, as one value.

Greenlets of one thread share these settings, so a pass that pauses inside `torch.autocast`, say, must hand them back.
"""

from dataclasses import dataclass

import torch
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode

from diffprune.compute.torch_context import AUTOCAST_DEVICES


@dataclass(frozen=True)
class ThreadState:
    """Settings that context managers of PyTorch change for the current thread.

    gradients: whether they are recorded. autocast: enabled and dtype, per device type of `AUTOCAST_DEVICES`.
    autocast_cache: whether autocast caches cast weights. function_modes: the stack, such as a default device.
    """

    gradients: bool
    autocast: tuple[tuple[bool, torch.dtype], ...]
    autocast_cache: bool
    function_modes: tuple[TorchFunctionMode, ...]

    @classmethod
    def current(cls) -> "ThreadState":
        """Return the settings of the current thread."""
        return cls(
            torch.is_grad_enabled(),
            tuple((torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in AUTOCAST_DEVICES),
            torch.is_autocast_cache_enabled(),
            tuple(_get_current_function_mode_stack()),
        )

    def replace(self, current: "ThreadState") -> None:
        """Make these the settings of the current thread, whose settings are `current`."""
        if self == current:
            return
        if self.function_modes != current.function_modes:
            for _ in current.function_modes:
                _pop_mode()
            for mode in self.function_modes:
                _push_mode(mode)
        torch.set_grad_enabled(self.gradients)
        for kind, (enabled, dtype) in zip(AUTOCAST_DEVICES, self.autocast, strict=True):
            torch.set_autocast_enabled(kind, enabled)
            torch.set_autocast_dtype(kind, dtype)
        torch.set_autocast_cache_enabled(self.autocast_cache)
