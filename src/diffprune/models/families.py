"""Facts per denoiser class: how to call it, which layers keep their width, which attributes mirror a width."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from diffprune.errors import ModelError
from diffprune.models.inputs import Inputs, unet2d_condition_inputs, unet2d_inputs

Dim = Literal["out", "in"]


@dataclass(frozen=True)
class Family:
    """What the stages must know about one denoiser class.

    fixed_outputs: layers whose output width is part of the interface and is never pruned.
    example_inputs: (model, batch size, device) -> keyword arguments of one forward pass.
    """

    class_name: str
    fixed_outputs: tuple[str, ...]
    example_inputs: Callable[[nn.Module, int, torch.device], Inputs]


FAMILIES: Mapping[str, Family] = {
    "UNet2DModel": Family("UNet2DModel", fixed_outputs=("conv_out",), example_inputs=unet2d_inputs),
    "UNet2DConditionModel": Family("UNet2DConditionModel", ("conv_out",), unet2d_condition_inputs),
}
"""By the name of the diffusers class."""

MIRRORS: Mapping[str, Mapping[str, tuple[str, Dim]]] = {
    "ResnetBlock2D": {
        "in_channels": ("conv1", "in"),
        "out_channels": ("conv2", "out"),
        "upsample.channels": ("conv1", "in"),
        "upsample.out_channels": ("conv1", "in"),
        "downsample.channels": ("conv1", "in"),
        "downsample.out_channels": ("conv1", "in"),
    },
    "Downsample2D": {"channels": ("conv", "in"), "out_channels": ("conv", "out")},
    "Upsample2D": {"channels": ("conv", "in"), "out_channels": ("conv", "out")},
    "Attention": {
        "query_dim": ("to_q", "in"),
        "cross_attention_dim": ("to_k", "in"),
        "inner_dim": ("to_q", "out"),
        "inner_kv_dim": ("to_k", "out"),
        "out_dim": ("to_out.0", "out"),
    },
    "Transformer2DModel": {
        "in_channels": ("norm", "out"),
        "inner_dim": ("proj_in", "out"),
        "out_channels": ("proj_out", "out"),
    },
    "BasicTransformerBlock": {"dim": ("norm1", "out"), "cross_attention_dim": ("attn2.to_k", "in")},
}
"""Attributes of diffusers modules, or of modules below, that repeat a width: attribute -> (layer below, dimension)."""

HEAD_ATTRIBUTES = ("heads", "sliceable_head_dim")
"""Attributes of an attention module that hold its number of heads."""


def predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
    """One forward pass: (N, C, H, W) noisy images, (N,) timesteps and a condition -> (N, C, H, W)."""
    told = {k: v.to(noisy.dtype) if v.is_floating_point() else v for k, v in condition.items()}
    output: Tensor = denoiser(noisy, timesteps, **told, return_dict=False)[0]
    return output


def family_of(model: nn.Module) -> Family:
    """The facts about a denoiser; raises ModelError for a class that is not served yet."""
    for kind in type(model).__mro__:
        if kind.__name__ in FAMILIES:
            return FAMILIES[kind.__name__]
    raise ModelError(f"denoiser class {type(model).__name__} is not served yet; served: {', '.join(FAMILIES)}")
