"""The torch device that a name stands for."""

import torch

from diffprune.errors import ModelError


def pick_device(name: str) -> torch.device:
    """Resolve a device option: `auto` is CUDA, then MPS, then CPU."""
    if name != "auto":
        try:
            device = torch.device(name)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ModelError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
        if device.type == "meta":
            raise ModelError("device 'meta' holds no values; give one that computes, such as cpu or cuda")
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
