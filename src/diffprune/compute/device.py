"""Resolve the `device` option to a torch device."""

import torch

from diffprune.errors import ModelError


def pick_device(name: str) -> torch.device:
    """Return the torch device of that name; `auto` is CUDA, then MPS, then CPU.

    Raises ModelError for a device that torch cannot use on this machine, and for `meta`.
    """
    if name != "auto":
        try:
            device = torch.device(name)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ModelError(f"device {name!r} is not available: {str(error).splitlines()[0]}") from error
        if device.type == "meta":
            raise ModelError("device 'meta' is not supported: it computes no values; use one such as cpu or cuda")
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
