"""Change the device, mode, gradients or checkpointing of a model inside a `with` block, and restore them after it."""

import functools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from diffprune.compute.autocast import short_attention_in_fp32
from diffprune.compute.offload import offloaded_weights
from diffprune.errors import ModelError


@contextmanager
def placed(model: nn.Module, device: torch.device, *, offloaded: bool = False) -> Iterator[nn.Module]:
    """Yield `model` on `device`, in eval mode and without gradients; restore all three afterwards.

    offloaded: keep the weights on the CPU and copy them to the device layer by layer.
    """
    original_device = next(model.parameters()).device
    modes = {module: module.training for module in model.modules()}
    gradients = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.to(torch.device("cpu") if offloaded else device).eval().requires_grad_(False)
    try:
        with offloaded_weights(model, device) if offloaded else nullcontext():
            yield model
    finally:
        model.to(original_device)
        for module, mode in modes.items():
            module.training = mode
        for parameter, value in gradients.items():
            parameter.requires_grad_(value)


@contextmanager
def checkpointed(model: nn.Module) -> Iterator[None]:
    """Enable gradient checkpointing: do not store activations inside blocks, recompute them in the backward pass.

    Raises ModelError for a class without it.
    """
    denoiser: Any = model
    if not getattr(model, "_supports_gradient_checkpointing", False):
        raise ModelError(
            f"{type(model).__name__} does not support gradient checkpointing; remove gradient_checkpointing"
        )
    names = ("gradient_checkpointing", "_gradient_checkpointing_func")
    before = [
        (module, {name: vars(module)[name] for name in names if name in vars(module)}) for module in model.modules()
    ]
    recompute = functools.partial(checkpoint, use_reentrant=False, context_fn=_forward_and_recompute_contexts)
    denoiser.enable_gradient_checkpointing(recompute)
    try:
        yield
    finally:
        for module, values in before:
            for name in names:
                vars(module).pop(name, None)
            vars(module).update(values)


def _forward_and_recompute_contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Contexts of a block's forward pass and of its recomputation, which runs outside of `autocast_forward`."""
    return nullcontext(), short_attention_in_fp32()


@contextmanager
def restored_devices(models: Sequence[nn.Module]) -> Iterator[None]:
    """Move models back to their devices after the block, whatever moved them inside it."""
    devices = [next((parameter.device for parameter in model.parameters()), None) for model in models]
    try:
        yield
    finally:
        for model, device in zip(models, devices, strict=True):
            if device is not None:
                nn.Module.to(model, device)
