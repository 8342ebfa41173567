"""The state of a model: borrowed for a while and given back as it was, and told apart by its weights."""

import functools
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from diffprune.compute.autocast import short_attention_in_fp32
from diffprune.compute.offload import weights_on_demand
from diffprune.errors import ModelError


@contextmanager
def placed(model: nn.Module, device: torch.device, *, offloaded: bool = False) -> Iterator[nn.Module]:
    """Yield `model` on `device`, in eval mode and without gradients; restore all three after.

    offloaded: its weights stay on the CPU and come to the device layer by layer.
    """
    before = next(model.parameters()).device
    modes = {module: module.training for module in model.modules()}
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.to(torch.device("cpu") if offloaded else device).eval().requires_grad_(False)
    try:
        with weights_on_demand(model, device) if offloaded else nullcontext():
            yield model
    finally:
        model.to(before)
        for module, mode in modes.items():
            module.training = mode
        for parameter, value in wanted.items():
            parameter.requires_grad_(value)


@contextmanager
def checkpointed(model: nn.Module) -> Iterator[None]:
    """Keep no activations inside blocks while it lasts; backward passes compute them anew.

    Raises ModelError for a class that cannot.
    """
    there: Any = model
    if not getattr(model, "_supports_gradient_checkpointing", False):
        raise ModelError(f"{type(model).__name__} has no gradient checkpointing; leave gradient_checkpointing out")
    names = ("gradient_checkpointing", "_gradient_checkpointing_func")
    before = [
        (module, {name: vars(module)[name] for name in names if name in vars(module)}) for module in model.modules()
    ]
    there.enable_gradient_checkpointing(functools.partial(checkpoint, use_reentrant=False, context_fn=_as_before))
    try:
        yield
    finally:
        for module, values in before:
            for name in names:
                vars(module).pop(name, None)
            vars(module).update(values)


def _as_before() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Contexts of a block's first forward pass, which needs none, and of the one anew, which is outside the first's."""
    return nullcontext(), short_attention_in_fp32()


@contextmanager
def restored_devices(models: Sequence[nn.Module]) -> Iterator[None]:
    """Bring models back to the devices that they were on before, whatever has moved them since."""
    before = [next((parameter.device for parameter in model.parameters()), None) for model in models]
    try:
        yield
    finally:
        for model, device in zip(models, before, strict=True):
            if device is not None:
                nn.Module.to(model, device)


def weights_hash(model: nn.Module) -> str:
    """The first half of the SHA-256 of all parameters and buffers, by name."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]
