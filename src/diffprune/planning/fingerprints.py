"""Fingerprint of an architecture: a hash that decides whether a plan fits a model."""

import hashlib
import json

from torch import nn


def fingerprint(denoiser: nn.Module) -> str:
    """Return the SHA-256 of the class name, the names and shapes of parameters, and the numbers of heads and groups."""
    shapes = {name: list(p.shape) for name, p in sorted(denoiser.named_parameters())}
    divisions = {
        f"{path}.{name}": value
        for path, module in denoiser.named_modules()
        for name in ("heads", "num_groups")
        if isinstance(value := getattr(module, name, None), int)
    }
    text = json.dumps([type(denoiser).__name__, shapes, divisions])
    return hashlib.sha256(text.encode()).hexdigest()
