"""The state of a model: borrowed for a while and given back as it was, and told apart by its weights."""

import hashlib
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


def weights_hash(model: nn.Module) -> str:
    """The first half of the SHA-256 of all parameters and buffers, by name."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]
