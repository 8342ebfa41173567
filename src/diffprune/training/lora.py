"""LoRA: train low-rank adapters next to frozen weights, and merge them at the end."""

import importlib.util
from typing import Any

import torch
from torch import nn

from diffprune.errors import OptionError


def check_peft() -> None:
    """Raise OptionError where PEFT is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise OptionError("lora_rank: PEFT is not installed; run pip install 'diffprune[lora]'")


def add_adapters(model: nn.Module, rank: int, seed: int) -> None:
    """Freeze a model and add a PEFT adapter to every linear layer and ungrouped 2D convolution, in place.

    W x becomes W x + B A x with A drawn by seed and B = 0, so the output is unchanged at first (Hu et al., ICLR 2022).
    Only the adapters' parameters have gradients.
    """
    from peft import LoraConfig, inject_adapter_in_model

    targets = [
        path
        for path, layer in model.named_modules()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
    ]
    model.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), model)


def merge_adapters(model: nn.Module) -> None:
    """Merge the adapters into the weights, in place; layers get their names and classes back."""
    if importlib.util.find_spec("peft") is None:
        return  # no adapters without PEFT
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = [(path, layer) for path, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)]
    for path, layer in adapted:
        tuner: Any = layer
        tuner.merge(safe_merge=True)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, tuner.get_base_layer())
