"""Remove rows and columns from the layers of a model and update the attributes that repeat their widths."""

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from diffusers.models.attention_processor import Attention, AttnAddedKVProcessor, AttnAddedKVProcessor2_0
from diffusers.models.normalization import GlobalResponseNorm, RMSNorm
from diffusers.models.unets import unet_stable_cascade
from torch import Tensor, nn

from diffprune.architectures import layouts
from diffprune.architectures.families import HEAD_ATTRIBUTES, MIRRORS, Dim
from diffprune.architectures.layouts import HEADS, HIDDEN_WIDTHS, KEY_VALUE_HEADS
from diffprune.architectures.rotary import slice_rotary_tables

LayerDim = tuple[str, Dim]
"""Path of a layer, and one of its dimensions."""

AxisIndices = tuple[int, Tensor]
"""Axis of a parameter, and the indices to keep along it."""


@dataclass(frozen=True)
class KeptIndices:
    """Indices to keep in every pruned layer of a model.

    rows: layer dimension -> indices to keep, int64, ascending. numbers: (module path, attribute) -> its new value.
    rotary: path of an attention that receives rotary tables of all heads -> indices of the heads to keep.
    """

    rows: Mapping[LayerDim, Tensor]
    numbers: Mapping[tuple[str, str], int] = field(default_factory=dict)
    rotary: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


_WEIGHTED: Mapping[str, Mapping[Dim, int]] = {"weight": {"out": 0, "in": 1}, "bias": {"out": 0}}
_RESPONSE_NORM: Mapping[str, Mapping[Dim, int]] = {"gamma": {"out": 3}, "beta": {"out": 3}}
_NORM: Mapping[str, Mapping[Dim, int]] = {"weight": {"out": 0}, "bias": {"out": 0}}

RESPONSE_NORMS = (GlobalResponseNorm, unet_stable_cascade.GlobalResponseNorm)
"""Norms without a width attribute: their width is the shape of their parameters."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
CHANNELS_FIRST = (*CONVOLUTIONS, nn.ConvTranspose2d, nn.GroupNorm)
"""Layers whose output has the channels in dimension 1; other layers have them last."""

AXES: Mapping[type[nn.Module], Mapping[str, Mapping[Dim, int]]] = {
    **dict.fromkeys((*CONVOLUTIONS, nn.Linear), _WEIGHTED),
    nn.ConvTranspose2d: {"weight": {"out": 1, "in": 0}, "bias": {"out": 0}},
    **dict.fromkeys((nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, RMSNorm), _NORM),
    **dict.fromkeys(RESPONSE_NORMS, _RESPONSE_NORM),
    nn.Embedding: {"weight": {"out": 1}},
}
"""Layer type -> parameter -> axis of the layer's `out` and `in` dimension."""

WIDTHS: Mapping[type[nn.Module], Mapping[Dim, str]] = {
    **{kind: {"out": "out_channels", "in": "in_channels"} for kind in (*CONVOLUTIONS, nn.ConvTranspose2d)},
    nn.Linear: {"out": "out_features", "in": "in_features"},
    nn.GroupNorm: {"out": "num_channels"},
    nn.LayerNorm: {"out": "normalized_shape"},
    nn.RMSNorm: {"out": "normalized_shape"},
    RMSNorm: {"out": "dim"},
    **{kind: {"out": "num_features"} for kind in RESPONSE_NORMS},
    nn.Embedding: {"out": "embedding_dim"},
}
"""Layer type -> attribute with the size of the layer's `out` and `in` dimension; in norms a tuple of one."""

WIDTH_ATTRIBUTES = frozenset(
    {name for widths in WIDTHS.values() for name in widths.values()}
    | {name.rpartition(".")[2] for mirrors in MIRRORS.values() for name in mirrors}
    | {"num_groups", "groups", *HEADS, *KEY_VALUE_HEADS, *layouts.WIDTHS, *layouts.OTHER_WIDTHS, *HIDDEN_WIDTHS}
)
"""All attributes that pruning may change; a manifest accepts only these."""

M = TypeVar("M", bound=nn.Module)


def layer_type(module: nn.Module) -> type[nn.Module] | None:
    """Return the resizable layer type of a module; None if it cannot be resized."""
    return next((kind for kind in AXES if isinstance(module, kind)), None)


def is_weighted(module: nn.Module) -> bool:
    """Return whether a layer has units and scored weights of its own: convolutions and linear layers do, norms not."""
    return isinstance(module, (*CONVOLUTIONS, nn.ConvTranspose2d, nn.Linear))


def width(module: nn.Module, dim: Dim) -> int:
    """Return the size of a resizable layer's dimension; raise TypeError for any other module."""
    kind = layer_type(module)
    if kind is None:
        raise TypeError(f"{type(module).__name__} is not a resizable layer")
    return number(module, WIDTHS[kind][dim]) or 0


def channel_axis(layer: nn.Module, output: Tensor) -> int:
    """Return the dimension of a layer's output that holds the channels."""
    return 1 if isinstance(layer, CHANNELS_FIRST) else output.ndim - 1


def width_attributes(layer: nn.Module, dim: Dim) -> tuple[str, ...]:
    """Return the attributes with the size of a layer's dimension; a depthwise convolution has several."""
    kind = layer_type(layer)
    assert kind is not None
    if isinstance(layer, CONVOLUTIONS) and layer.groups == layer.in_channels == layer.out_channels > 1:
        return ("in_channels", "out_channels", "groups")
    return (WIDTHS[kind][dim],)


def number(module: nn.Module, attribute: str) -> int | None:
    """Return an integer attribute of a module, bare or in a tuple of one; None for any other value."""
    value = vars(module).get(attribute)
    if isinstance(module, RESPONSE_NORMS) and attribute == "num_features" and value is None:
        value = module.gamma.shape[-1]
    if isinstance(value, tuple) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def set_number(module: nn.Module, attribute: str, value: int) -> None:
    """Set an attribute that `number` can read; a tuple remains a tuple."""
    setattr(module, attribute, (value,) if isinstance(vars(module).get(attribute), tuple) else value)


def parameter_slices(model: nn.Module, kept: KeptIndices) -> dict[str, list[AxisIndices]]:
    """Return parameter name -> indices to keep, for every parameter that loses any."""
    slices: dict[str, list[AxisIndices]] = defaultdict(list)
    for (path, dim), indices in kept.rows.items():
        layer = model.get_submodule(path)
        kind = layer_type(layer)
        if kind is None:
            raise TypeError(f"{path}: {type(layer).__name__} is not a resizable layer")
        for name, axes in AXES[kind].items():
            if getattr(layer, name, None) is not None and dim in axes:
                slices[f"{path}.{name}"].append((axes[dim], indices))
    return slices


def slice_tensor(tensor: Tensor, slices: Sequence[AxisIndices]) -> Tensor:
    """Return a copy of a tensor with the given indices only; the tensor itself if `slices` is empty."""
    for axis, indices in slices:
        tensor = tensor.index_select(axis, indices.to(tensor.device))
    return tensor


def shrink(model: M, kept: KeptIndices) -> M:
    """Return a copy of `model` with the kept rows and columns only; `model` does not change.

    Works with weights and on the meta device. Updates the attributes that repeat a width, and the numbers of heads.
    Allocates the smaller parameters only.
    """
    replaced: dict[int, nn.Parameter] = {}
    for name, slices in parameter_slices(model, kept).items():
        parameter = model.get_parameter(name)
        smaller = slice_tensor(replaced.get(id(parameter), parameter).detach(), slices)
        replaced[id(parameter)] = nn.Parameter(smaller, requires_grad=parameter.requires_grad)
    small = copy.deepcopy(model, dict(replaced))
    for (path, dim), indices in kept.rows.items():
        layer = small.get_submodule(path)
        for attribute in width_attributes(layer, dim):
            set_number(layer, attribute, len(indices))
    for (path, attribute), value in kept.numbers.items():
        set_number(small.get_submodule(path), attribute, value)
    for path, heads in kept.rotary.items():
        slice_rotary_tables(small.get_submodule(path), heads)
    update_widths(model, small)
    update_attention(small)
    return small


def update_widths(before: nn.Module, after: nn.Module, *, heads: int | None = None) -> None:
    """Update the attributes of `after` that repeat a layer's width in `before`, such as `inner_dim` and `heads`.

    heads: number of heads of each attention that had several; None keeps the width of a head and changes the number.
    Raises ValueError, with the path of the attention, if its rows cannot be divided into heads.
    """
    for (path, old), new in zip(before.named_modules(), after.modules(), strict=True):
        for attribute, (below, dim) in MIRRORS.get(type(old).__name__, {}).items():
            owner_path, _, name = attribute.rpartition(".")
            owner, old_layer = _submodule(old, owner_path), _submodule(old, below)
            if owner is None or old_layer is None or layer_type(old_layer) is None:
                continue
            if number(owner, name) == width(old_layer, dim):
                set_number(new.get_submodule(owner_path), name, width(new.get_submodule(below), dim))
        if type(old).__name__ == "Attention" and getattr(old, "heads", 1) > 1:
            rows = width(new.get_submodule("to_q"), "out")
            head_dim = width(old.get_submodule("to_q"), "out") // int(old.heads)
            count, rest = divmod(rows, head_dim if heads is None else heads)
            if rest or not count:
                kind = f"heads of {head_dim}" if heads is None else f"rows for each of {heads} heads"
                raise ValueError(f"{path}: its {rows} rows cannot be divided into {kind}")
            for attribute in HEAD_ATTRIBUTES:
                setattr(new, attribute, count if heads is None else heads)


def update_attention(model: nn.Module) -> None:
    """Update what an attention computes from its widths: the scale of its products, and its processor.

    torch's fused attention scales by the width of a head; the other processors of diffusers use `scale`.
    `AttnAddedKVProcessor2_0` reshapes to the residual's width, `AttnAddedKVProcessor` does not.
    """
    for module in model.modules():
        if not isinstance(module, Attention):
            continue
        attention: Any = module
        if attention.scale_qk:
            attention.scale = (attention.to_q.out_features // attention.heads) ** -0.5
        narrow = attention.to_q.out_features != attention.to_q.in_features
        if narrow and isinstance(attention.processor, AttnAddedKVProcessor2_0):
            attention.set_processor(AttnAddedKVProcessor())


def without_weights(model: M) -> M:
    """Return a copy of `model` with fp32 parameters on the meta device; buffers keep their values."""
    shadows = {id(p): nn.Parameter(torch.empty_like(p, device="meta", dtype=torch.float32)) for p in model.parameters()}
    return copy.deepcopy(model, dict(shadows))


def on_meta(model: M) -> M:
    """Return a copy of `model` on the meta device with fp32 parameters; allocates no weights."""
    return without_weights(model).to("meta")


def _submodule(module: nn.Module, path: str) -> nn.Module | None:
    current: nn.Module | None = module
    for name in path.split(".") if path else ():
        current = current._modules.get(name) if current is not None else None
    return current


def layer_below(module: nn.Module, path: str) -> nn.Module | None:
    """Return the resizable layer at a path below a module; None if there is none."""
    layer = _submodule(module, path)
    return None if layer is None or layer_type(layer) is None else layer


def linear_below(module: nn.Module, path: str) -> nn.Linear | None:
    """Return the linear layer at a path below a module; None if there is none."""
    layer = _submodule(module, path)
    return layer if isinstance(layer, nn.Linear) else None
