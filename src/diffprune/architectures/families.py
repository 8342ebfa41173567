"""Facts per denoiser class: how to call it, which layers keep their width, which attributes mirror a width."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn

from diffprune.architectures.example_inputs import derived_inputs as inputs
from diffprune.architectures.example_inputs.derived_inputs import Inputs, derived_inputs
from diffprune.architectures.example_inputs.image_inputs import CALLS
from diffprune.architectures.layouts import ATTENTIONS, AttentionLayout, FeedForwardLayout
from diffprune.errors import ModelError

Dim = Literal["out", "in"]


@dataclass(frozen=True)
class Family:
    """What the stages must know about one denoiser class, where it is not what the rules take for granted.

    example_inputs: (model, batch size, device) -> keyword arguments of one forward pass.
    convolutional: whether its channels are found by dependency graph.
    fixed_outputs: layers (paths, or patterns with *) whose output width belongs to the interface, or has to stay.
    whole_attentions: (path, attention) -> whether it keeps its heads, since something else takes them as they are.
    attentions, feed_forwards: layouts of its blocks beside the known ones; tried first.
    """

    example_inputs: Callable[[nn.Module, int, torch.device], Inputs] = field(default_factory=derived_inputs)
    convolutional: bool = False
    fixed_outputs: tuple[str, ...] = ()
    whole_attentions: Callable[[str, nn.Module], bool] = lambda path, attention: False
    attentions: tuple[AttentionLayout, ...] = ()
    feed_forwards: tuple[FeedForwardLayout, ...] = ()


def _unet(special: inputs.Special, fixed: tuple[str, ...] = ("conv_out",)) -> Family:
    return Family(derived_inputs(special), convolutional=True, fixed_outputs=fixed)


def _transformer(name: str, **facts: Any) -> Family:
    return Family(derived_inputs(CALLS.get(name)), **facts)


def _convolutional(name: str, fixed: tuple[str, ...] = ("conv_out",)) -> Family:
    return Family(derived_inputs(CALLS.get(name)), convolutional=True, fixed_outputs=fixed)


FAMILIES: dict[str, Family] = {
    "UNet2DModel": _unet(inputs.unet2d_inputs),
    "UNet2DConditionModel": _unet(inputs.unet2d_condition_inputs),
    **{name: Family(derived_inputs(call)) for name, call in CALLS.items()},
    "UNet3DConditionModel": _convolutional("UNet3DConditionModel"),
    # tables of positions are added to the channels of motion modules
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
    "LuminaNextDiT2DModel": _transformer("LuminaNextDiT2DModel", whole_attentions=lambda path, attention: True),
    # without projections of its own, the text's part of the heads goes to the residual as it is
    "EasyAnimateTransformer3DModel": _transformer(
        "EasyAnimateTransformer3DModel", whole_attentions=lambda path, attention: attention.to_add_out is None
    ),
    # the cross-attention of a single block looks at the heads of its attention
    "MotifVideoTransformer3DModel": _transformer(
        "MotifVideoTransformer3DModel", whole_attentions=lambda path, attention: path.startswith("single_")
    ),
    # its cross-attention reshapes its heads to the width of the residual
    "SanaWMTransformer3DModel": _transformer("SanaWMTransformer3DModel", whole_attentions=lambda path, attention: True),
    # the attention reshapes its heads to `out_dim`
    "OmniGenTransformer2DModel": _transformer(
        "OmniGenTransformer2DModel", attentions=(replace(ATTENTIONS[0], widths=("out_dim",)),)
    ),
}
"""By the name of the class; any other follows the rules alone."""

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
"""Attributes of diffusers modules, or of modules below, that repeat a width: attribute -> (layer below, dimension)."""

HEAD_ATTRIBUTES = ("heads", "sliceable_head_dim")
"""Attributes of an attention module that hold its number of heads."""


def family_of(model: nn.Module) -> Family:
    """The facts about a denoiser, by the names of its classes; those of the rules alone where none is known."""
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
    """Make a denoiser class known, from diffusers or not; what was known about it before is replaced.

    kind: the class or its name; subclasses are served with it.
    example_inputs: (model, batch size, device) -> keyword arguments of one forward pass; None derives them from the
    names of the forward pass and of `model.config`.
    channels: find channels by dependency graph, for convolutional models; `fixed_outputs` are the layers (paths,
    or patterns with *) whose output width belongs to the interface.
    attentions, feed_forwards: names of layers in its blocks, where they differ from the known layouts. Blocks are
    the modules inside an `nn.ModuleList`.
    Raises ModelError for facts that fit no model: fixed outputs without channels, layouts without layers.
    """
    if fixed_outputs and not channels:
        raise ModelError(f"fixed_outputs {list(fixed_outputs)} mean channels: add channels=True, or leave them out")
    if any(not (layout.packed or (layout.queries and layout.keys and layout.values)) for layout in attentions):
        raise ModelError("an AttentionLayout needs queries, keys and values, or packed projections")
    FAMILIES[kind if isinstance(kind, str) else kind.__name__] = Family(
        derived_inputs() if example_inputs is None else example_inputs,
        convolutional=channels,
        fixed_outputs=fixed_outputs,
        attentions=attentions,
        feed_forwards=feed_forwards,
    )
