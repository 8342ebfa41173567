"""Low-rank adapters: recovery that trains a small part beside frozen weights, merged into them at the end."""

import importlib.util
from typing import Any

import torch
from torch import nn

from diffprune.errors import OptionError


def check_peft() -> None:
    """Raise OptionError where PEFT, which makes the adapters, is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise OptionError("lora_rank: needs PEFT; pip install 'diffprune[lora]'")


def add_adapters(model: nn.Module, rank: int, seed: int) -> None:
    """Freeze a model and put an adapter of a rank beside every linear layer and ungrouped 2D convolution, in place.

    W x becomes W x + B A x with A drawn by seed and B = 0, so that the output stays as it is at first (Hu et al., ICLR
    2022), by PEFT. Their parameters are the only ones that take gradients.
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
    """Add the adapters into the weights and take them away, in place: the layers are as they were, by name and kind."""
    if importlib.util.find_spec("peft") is None:
        return  # there are none
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = [(path, layer) for path, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)]
    for path, layer in adapted:
        tuned: Any = layer
        tuned.merge(safe_merge=True)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, tuned.get_base_layer())
