"""Run public functions in PyTorch's default settings, whatever settings the caller has changed."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")
"""Device types that have autocast settings of their own."""


@contextmanager
def default_torch_context() -> Iterator[None]:
    """Use PyTorch's defaults inside the block, and restore the caller's settings after it, also after an error.

    Default dtype float32 and default device CPU; gradients are recorded; inference mode and autocast are off.
    """
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())
        for kind in AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield
