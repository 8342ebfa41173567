"""Resize primitives: keep chosen rows and columns of layers, and the attributes that repeat their widths."""

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
from diffprune.architectures.rotary import keep_rotary

Place = tuple[str, Dim]
"""A layer's path, and which of its dimensions is meant."""

Cut = tuple[int, Tensor]
"""An axis of a parameter, and the indices on it that stay."""


@dataclass(frozen=True)
class Kept:
    """What remains of a model.

    rows: place -> indices to keep, int64, ascending. numbers: (module path, attribute) -> its new value.
    rotary: path of an attention that is given rotary tables for all heads -> the heads it keeps, of those it has.
    """

    rows: Mapping[Place, Tensor]
    numbers: Mapping[tuple[str, str], int] = field(default_factory=dict)
    rotary: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


_WEIGHTED: Mapping[str, Mapping[Dim, int]] = {"weight": {"out": 0, "in": 1}, "bias": {"out": 0}}
_RESPONSE_NORM: Mapping[str, Mapping[Dim, int]] = {"gamma": {"out": 3}, "beta": {"out": 3}}
_NORM: Mapping[str, Mapping[Dim, int]] = {"weight": {"out": 0}, "bias": {"out": 0}}

RESPONSE_NORMS = (GlobalResponseNorm, unet_stable_cascade.GlobalResponseNorm)
"""Norms that hold their width nowhere but in the shape of their parameters."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
CHANNELS_FIRST = (*CONVOLUTIONS, nn.ConvTranspose2d, nn.GroupNorm)
"""Layers whose channels are the second dimension of what they give; those of all others are the last."""

AXES: Mapping[type[nn.Module], Mapping[str, Mapping[Dim, int]]] = {
    **dict.fromkeys((*CONVOLUTIONS, nn.Linear), _WEIGHTED),
    nn.ConvTranspose2d: {"weight": {"out": 1, "in": 0}, "bias": {"out": 0}},
    **dict.fromkeys((nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, RMSNorm), _NORM),
    **dict.fromkeys(RESPONSE_NORMS, _RESPONSE_NORM),
    nn.Embedding: {"weight": {"out": 1}},
}
"""Which axis of which parameter a layer's `out` and `in` dimensions are."""

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
"""Which attribute of a layer holds the size of its `out` and `in` dimensions; norms hold a tuple of one."""

WIDTH_ATTRIBUTES = frozenset(
    {name for widths in WIDTHS.values() for name in widths.values()}
    | {name.rpartition(".")[2] for mirrors in MIRRORS.values() for name in mirrors}
    | {"num_groups", "groups", *HEADS, *KEY_VALUE_HEADS, *layouts.WIDTHS, *layouts.OTHER_WIDTHS, *HIDDEN_WIDTHS}
)
"""All attributes that pruning may change; a manifest can hold no others."""

M = TypeVar("M", bound=nn.Module)


def layer_type(module: nn.Module) -> type[nn.Module] | None:
    """The resizable layer type a module is an instance of, or None."""
    return next((kind for kind in AXES if isinstance(module, kind)), None)


def is_weighted(module: nn.Module) -> bool:
    """True for layers that produce units of their own, and whose weights enter scores: convolutions and linears."""
    return isinstance(module, (*CONVOLUTIONS, nn.ConvTranspose2d, nn.Linear))


def width(module: nn.Module, dim: Dim) -> int:
    """Size of a resizable layer's dimension."""
    kind = layer_type(module)
    if kind is None:
        raise TypeError(f"{type(module).__name__} is not a resizable layer")
    return number(module, WIDTHS[kind][dim]) or 0


def channel_axis(layer: nn.Module, given: Tensor) -> int:
    """Which dimension of what a layer gives its channels are."""
    return 1 if isinstance(layer, CHANNELS_FIRST) else given.ndim - 1


def width_attributes(layer: nn.Module, dim: Dim) -> tuple[str, ...]:
    """The attributes that hold the size of a layer's dimension: several in a depthwise convolution."""
    kind = layer_type(layer)
    assert kind is not None
    if isinstance(layer, CONVOLUTIONS) and layer.groups == layer.in_channels == layer.out_channels > 1:
        return ("in_channels", "out_channels", "groups")
    return (WIDTHS[kind][dim],)


def number(module: nn.Module, attribute: str) -> int | None:
    """A whole number that a module holds, bare or as a tuple of one; None for anything else."""
    value = vars(module).get(attribute)
    if isinstance(module, RESPONSE_NORMS) and attribute == "num_features" and value is None:
        value = module.gamma.shape[-1]
    if isinstance(value, tuple) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def set_number(module: nn.Module, attribute: str, value: int) -> None:
    """Change a number found by `number`; a tuple stays one."""
    setattr(module, attribute, (value,) if isinstance(vars(module).get(attribute), tuple) else value)


def cuts_of(model: nn.Module, kept: Kept) -> dict[str, list[Cut]]:
    """Parameter -> how it is cut; parameters that stay whole are left out."""
    found: dict[str, list[Cut]] = defaultdict(list)
    for (path, dim), indices in kept.rows.items():
        layer = model.get_submodule(path)
        kind = layer_type(layer)
        if kind is None:
            raise TypeError(f"{path}: {type(layer).__name__} is not a resizable layer")
        for name, axes in AXES[kind].items():
            if getattr(layer, name, None) is not None and dim in axes:
                found[f"{path}.{name}"].append((axes[dim], indices))
    return found


def cut(tensor: Tensor, cuts: Sequence[Cut]) -> Tensor:
    """A copy of what stays of a tensor; the tensor itself where nothing is cut."""
    for axis, indices in cuts:
        tensor = tensor.index_select(axis, indices.to(tensor.device))
    return tensor


def shrink(model: M, kept: Kept) -> M:
    """A copy of `model` in which only the kept rows and columns remain; `model` is untouched.

    Works with weights and on the meta device. Attributes that repeat a width, and numbers of heads, follow.
    Only the smaller parameters are allocated.
    """
    replaced: dict[int, nn.Parameter] = {}
    for name, cuts in cuts_of(model, kept).items():
        parameter = model.get_parameter(name)
        smaller = cut(replaced.get(id(parameter), parameter).detach(), cuts)
        replaced[id(parameter)] = nn.Parameter(smaller, requires_grad=parameter.requires_grad)
    small = copy.deepcopy(model, dict(replaced))
    for (path, dim), indices in kept.rows.items():
        layer = small.get_submodule(path)
        for attribute in width_attributes(layer, dim):
            set_number(layer, attribute, len(indices))
    for (path, attribute), value in kept.numbers.items():
        set_number(small.get_submodule(path), attribute, value)
    for path, heads in kept.rotary.items():
        keep_rotary(small.get_submodule(path), heads)
    follow_widths(model, small)
    fit_attention(small)
    return small


def follow_widths(before: nn.Module, after: nn.Module, *, heads: int | None = None) -> None:
    """Set the attributes of `after` that repeat a width, where they repeated it in `before`.

    heads: of each attention that had several; None keeps their width instead. Raises ValueError, which names the
    attention, when its rows are not whole heads.
    """
    for (path, old), new in zip(before.named_modules(), after.modules(), strict=True):
        for attribute, (below, dim) in MIRRORS.get(type(old).__name__, {}).items():
            place, _, name = attribute.rpartition(".")
            owner, old_layer = _below(old, place), _below(old, below)
            if owner is None or old_layer is None or layer_type(old_layer) is None:
                continue
            if number(owner, name) == width(old_layer, dim):
                set_number(new.get_submodule(place), name, width(new.get_submodule(below), dim))
        if type(old).__name__ == "Attention" and getattr(old, "heads", 1) > 1:
            rows = width(new.get_submodule("to_q"), "out")
            head_dim = width(old.get_submodule("to_q"), "out") // int(old.heads)
            count, rest = divmod(rows, head_dim if heads is None else heads)
            if rest or not count:
                kind = f"heads of {head_dim}" if heads is None else f"rows for each of {heads} heads"
                raise ValueError(f"{path}: its {rows} rows are no whole number of {kind}")
            for attribute in HEAD_ATTRIBUTES:
                setattr(new, attribute, count if heads is None else heads)


def fit_attention(model: nn.Module) -> None:
    """Bring what an attention derived from its widths in step with them: the scale of its products, its processor.

    Fused attention scales by the width of a head as it is; diffusers' other processors by `scale`. Its
    `AttnAddedKVProcessor2_0` reshapes to the residual's width, where `AttnAddedKVProcessor` does not.
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
    """A copy of `model` with its parameters on the meta device, in fp32 whatever their dtype; buffers keep values."""
    shadows = {id(p): nn.Parameter(torch.empty_like(p, device="meta", dtype=torch.float32)) for p in model.parameters()}
    return copy.deepcopy(model, dict(shadows))


def on_meta(model: M) -> M:
    """A copy of `model` on the meta device, in fp32 whatever its dtype; allocates no weights."""
    return without_weights(model).to("meta")


def _below(module: nn.Module, path: str) -> nn.Module | None:
    here: nn.Module | None = module
    for name in path.split(".") if path else ():
        here = here._modules.get(name) if here is not None else None
    return here


def layer_below(module: nn.Module, path: str) -> nn.Module | None:
    """The resizable layer at a path below a module; None where there is none."""
    found = _below(module, path)
    return None if found is None or layer_type(found) is None else found


def linear_below(module: nn.Module, path: str) -> nn.Linear | None:
    """The linear layer at a path below a module; None where there is none."""
    found = _below(module, path)
    return found if isinstance(found, nn.Linear) else None
