"""Register facts per denoiser class: example inputs, layers that keep their width, attributes that mirror a width."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn

from diffprune.architectures.example_inputs.derived_inputs import (
    Inputs,
    Special,
    derived_inputs,
    unet2d_condition_inputs,
    unet2d_inputs,
)
from diffprune.architectures.example_inputs.image_inputs import IMAGE_INPUTS
from diffprune.architectures.example_inputs.video_inputs import VIDEO_INPUTS
from diffprune.architectures.layouts import ATTENTIONS, AttentionLayout, FeedForwardLayout
from diffprune.errors import ModelError

Dim = Literal["out", "in"]


@dataclass(frozen=True)
class Family:
    """Facts about a denoiser class that the general rules do not cover.

    example_inputs: (model, batch size, device) -> keyword arguments of one forward pass.
    convolutional: whether the dependency graph finds its channels.
    fixed_outputs: layers (paths, or patterns with *) whose output width cannot change.
    keeps_all_heads: (path, attention) -> whether no head can be removed, because another layer uses all heads.
    attentions, feed_forwards: additional layouts of its blocks; tried before the general ones.
    """

    example_inputs: Callable[[nn.Module, int, torch.device], Inputs] = field(default_factory=derived_inputs)
    convolutional: bool = False
    fixed_outputs: tuple[str, ...] = ()
    keeps_all_heads: Callable[[str, nn.Module], bool] = lambda path, attention: False
    attentions: tuple[AttentionLayout, ...] = ()
    feed_forwards: tuple[FeedForwardLayout, ...] = ()


INPUTS: Mapping[str, Special] = {
    **IMAGE_INPUTS,
    **VIDEO_INPUTS,
    "UNet2DModel": unet2d_inputs,
    "UNet2DConditionModel": unet2d_condition_inputs,
}


def _transformer(name: str, **facts: Any) -> Family:
    return Family(derived_inputs(INPUTS.get(name)), **facts)


def _convolutional(name: str, fixed: tuple[str, ...] = ("conv_out",)) -> Family:
    return Family(derived_inputs(INPUTS.get(name)), convolutional=True, fixed_outputs=fixed)


FAMILIES: dict[str, Family] = {
    **{name: _transformer(name) for name in INPUTS},
    "UNet2DModel": _convolutional("UNet2DModel"),
    "UNet2DConditionModel": _convolutional("UNet2DConditionModel"),
    "UNet3DConditionModel": _convolutional("UNet3DConditionModel"),
    # position embeddings are added to the channels of motion modules
    "UNetMotionModel": _convolutional("UNetMotionModel", ("conv_out", "*.motion_modules.*.proj_in")),
    "I2VGenXLUNet": _convolutional(
        "I2VGenXLUNet",
        (
            "conv_out",
            "image_latents_proj_in.4",
            "image_latents_context_embedding.5",
            "context_embedding.2",
            "image_latents_temporal_encoder.attn1.to_out.0",
            "image_latents_temporal_encoder.ff.net.2",
        ),
    ),
    "UNetSpatioTemporalConditionModel": _convolutional("UNetSpatioTemporalConditionModel"),
    "Kandinsky3UNet": _convolutional("Kandinsky3UNet"),
    # attn1 and attn2 share the output projection of attn2
    "LuminaNextDiT2DModel": _transformer("LuminaNextDiT2DModel", keeps_all_heads=lambda path, attention: True),
    # without an output projection, the heads of the text are added to the residual
    "EasyAnimateTransformer3DModel": _transformer(
        "EasyAnimateTransformer3DModel", keeps_all_heads=lambda path, attention: attention.to_add_out is None
    ),
    # the cross-attention of a single block reads the heads of its self-attention
    "MotifVideoTransformer3DModel": _transformer(
        "MotifVideoTransformer3DModel", keeps_all_heads=lambda path, attention: path.startswith("single_")
    ),
    # cross-attention reshapes its heads to the width of the residual
    "SanaWMTransformer3DModel": _transformer("SanaWMTransformer3DModel", keeps_all_heads=lambda path, attention: True),
    # the attention reshapes its heads to `out_dim`
    "OmniGenTransformer2DModel": _transformer(
        "OmniGenTransformer2DModel", attentions=(replace(ATTENTIONS[0], widths=("out_dim",)),)
    ),
}
"""Class name -> family; the general rules apply to all other classes."""

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
    },
    "Transformer2DModel": {
        "in_channels": ("norm", "out"),
        "inner_dim": ("proj_in", "out"),
        "out_channels": ("proj_out", "out"),
    },
    "BasicTransformerBlock": {"dim": ("norm1", "out"), "cross_attention_dim": ("attn2.to_k", "in")},
}
"""Module class -> attribute that repeats a width -> (layer, dimension); attributes and layers are paths below it."""

HEAD_ATTRIBUTES = ("heads", "sliceable_head_dim")
"""Attributes of an attention module with its number of heads."""


def family_of(model: nn.Module) -> Family:
    """Return the family of a denoiser, by the names of its class and base classes; the default family if unknown."""
    return next((FAMILIES[kind.__name__] for kind in type(model).__mro__ if kind.__name__ in FAMILIES), Family())


def register_family(
    kind: str | type,
    *,
    example_inputs: Callable[[nn.Module, int, torch.device], Inputs] | None = None,
    channels: bool = False,
    fixed_outputs: tuple[str, ...] = (),
    attentions: tuple[AttentionLayout, ...] = (),
    feed_forwards: tuple[FeedForwardLayout, ...] = (),
) -> None:
    """Register a denoiser class, from diffusers or not; replaces an earlier registration.

    kind: the class or its name; subclasses are included.
    example_inputs: (model, batch size, device) -> keyword arguments of one forward pass; None derives them from the
    names in the forward pass and in `model.config`.
    channels: find channels with the dependency graph, for convolutional models. fixed_outputs: layers (paths, or
    patterns with *) whose output width cannot change.
    attentions, feed_forwards: layer names in its blocks, if they differ from the built-in layouts. Blocks are the
    modules inside an `nn.ModuleList`.
    Raises ModelError for fixed outputs without channels, and for attention layouts without layers.
    """
    if fixed_outputs and not channels:
        raise ModelError(f"fixed_outputs {list(fixed_outputs)} require channels=True; add it, or remove fixed_outputs")
    if any(not (layout.packed or (layout.queries and layout.keys and layout.values)) for layout in attentions):
        raise ModelError("an AttentionLayout needs queries, keys and values, or packed projections")
    FAMILIES[kind if isinstance(kind, str) else kind.__name__] = Family(
        derived_inputs() if example_inputs is None else example_inputs,
        convolutional=channels,
        fixed_outputs=fixed_outputs,
        attentions=attentions,
        feed_forwards=feed_forwards,
    )
