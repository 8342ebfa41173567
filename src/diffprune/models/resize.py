"""Resize primitives: keep chosen rows and columns of layers, and the attributes that repeat their widths."""

import copy
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from diffprune.models.families import HEAD_ATTRIBUTES, MIRRORS, Dim

Kept = Mapping[tuple[str, Dim], Tensor]
"""(module path, dimension) -> indices to keep, int64, ascending."""

AXES: Mapping[type[nn.Module], Mapping[str, Mapping[Dim, int]]] = {
    nn.Conv2d: {"weight": {"out": 0, "in": 1}, "bias": {"out": 0}},
    nn.Linear: {"weight": {"out": 0, "in": 1}, "bias": {"out": 0}},
    nn.GroupNorm: {"weight": {"out": 0}, "bias": {"out": 0}},
    nn.Embedding: {"weight": {"out": 1}},
}
"""Which axis of which parameter a layer's `out` and `in` dimensions are."""

WIDTHS: Mapping[type[nn.Module], Mapping[Dim, str]] = {
    nn.Conv2d: {"out": "out_channels", "in": "in_channels"},
    nn.Linear: {"out": "out_features", "in": "in_features"},
    nn.GroupNorm: {"out": "num_channels"},
    nn.Embedding: {"out": "embedding_dim"},
}
"""Which attribute of a layer holds the size of its `out` and `in` dimensions."""

WIDTH_ATTRIBUTES = frozenset(
    {name for widths in WIDTHS.values() for name in widths.values()}
    | {name.rpartition(".")[2] for mirrors in MIRRORS.values() for name in mirrors}
    | {"num_groups", *HEAD_ATTRIBUTES}
)
"""All attributes that pruning may change; a manifest can hold no others."""

M = TypeVar("M", bound=nn.Module)


def layer_type(module: nn.Module) -> type[nn.Module] | None:
    """The resizable layer type a module is an instance of, or None."""
    return next((kind for kind in AXES if isinstance(module, kind)), None)


def width(module: nn.Module, dim: Dim) -> int:
    """Size of a resizable layer's dimension."""
    kind = layer_type(module)
    if kind is None:
        raise TypeError(f"{type(module).__name__} is not a resizable layer")
    return int(getattr(module, WIDTHS[kind][dim]))


def shrink(model: M, kept: Kept) -> M:
    """A copy of `model` in which only the kept rows and columns remain; `model` is untouched.

    Works with weights and on the meta device. Attributes that repeat a width, and numbers of heads, follow.
    Only the smaller parameters are allocated.
    """
    replaced: dict[int, nn.Parameter] = {}
    for (path, dim), indices in kept.items():
        layer = model.get_submodule(path)
        kind = layer_type(layer)
        if kind is None:
            raise TypeError(f"{path}: {type(layer).__name__} is not a resizable layer")
        for name, axes in AXES[kind].items():
            parameter = getattr(layer, name)
            if parameter is None or dim not in axes:
                continue
            current = replaced.get(id(parameter), parameter)
            smaller = current.detach().index_select(axes[dim], indices.to(current.device))
            replaced[id(parameter)] = nn.Parameter(smaller, requires_grad=parameter.requires_grad)
    small = copy.deepcopy(model, dict(replaced))
    for (path, dim), indices in kept.items():
        layer = small.get_submodule(path)
        kind = layer_type(layer)
        assert kind is not None
        setattr(layer, WIDTHS[kind][dim], len(indices))
    follow_widths(model, small)
    return small


def follow_widths(before: nn.Module, after: nn.Module) -> None:
    """Set the attributes of `after` that repeat a width, where they repeated it in `before`."""
    for (path, old), new in zip(before.named_modules(), after.modules(), strict=True):
        for attribute, (below, dim) in MIRRORS.get(type(old).__name__, {}).items():
            place, _, name = attribute.rpartition(".")
            owner, old_layer = _below(old, place), _below(old, below)
            if owner is None or old_layer is None or layer_type(old_layer) is None:
                continue
            if getattr(owner, name, None) != width(old_layer, dim):
                continue
            setattr(new.get_submodule(place), name, width(new.get_submodule(below), dim))
        if type(old).__name__ == "Attention" and getattr(old, "heads", 1) > 1:
            head_dim = width(old.get_submodule("to_q"), "out") // int(old.heads)
            heads, rest = divmod(width(new.get_submodule("to_q"), "out"), head_dim)
            if rest:
                raise ValueError(f"{path}: {rest} rows beyond whole heads of {head_dim} remain")
            for attribute in HEAD_ATTRIBUTES:
                setattr(new, attribute, heads)


def on_meta(model: M) -> M:
    """A copy of `model` on the meta device, in fp32 whatever its dtype; allocates no weights."""
    shadows = {id(p): nn.Parameter(torch.empty_like(p, device="meta", dtype=torch.float32)) for p in model.parameters()}
    return copy.deepcopy(model, dict(shadows)).to("meta")


def _below(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None
