"""The fingerprint of an architecture: which models a plan fits."""

import hashlib
import json

from torch import nn


def fingerprint(denoiser: nn.Module) -> str:
    """Return the SHA-256 of the class, of the names and shapes of parameters, of heads and norm groups."""
    shapes = {name: list(p.shape) for name, p in sorted(denoiser.named_parameters())}
    divisions = {
        f"{path}.{name}": value
        for path, module in denoiser.named_modules()
        for name in ("heads", "num_groups")
        if isinstance(value := getattr(module, name, None), int)
    }
    text = json.dumps([type(denoiser).__name__, shapes, divisions])
    return hashlib.sha256(text.encode()).hexdigest()
