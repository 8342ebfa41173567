"""Rotary tables that span all heads: an attention that lost heads takes the part of the heads it kept."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "LTXAttention": ("image_rotary_emb",),
    "LTX2Attention": ("query_rotary_emb", "key_rotary_emb"),
    "MochiAttention": ("image_rotary_emb",),
    "SanaWMLTX2Attention": ("query_rotary_emb", "key_rotary_emb"),
}
"""Attention class -> arguments of its forward pass that hold a table for all heads of the unpruned model."""

KEPT = "rotary_heads"
"""Attribute of such an attention: the heads it kept, of those of the stock model, ascending."""


def kept_of(attention: nn.Module) -> tuple[int, ...] | None:
    """The heads of the stock model that an attention kept; None where it keeps no record, having lost none."""
    return getattr(attention, KEPT, None)


def spans_heads(attention: nn.Module) -> bool:
    """Whether an attention is given rotary tables for all heads."""
    return type(attention).__name__ in ARGUMENTS


def keep_rotary(attention: Any, heads: Sequence[int]) -> None:
    """Let an attention take the part of the kept heads from the tables it is given, from now on.

    heads: the kept ones, of those that it had until now.
    """
    until_now = kept_of(attention)
    setattr(attention, KEPT, tuple(heads if until_now is None else [until_now[head] for head in heads]))
    if until_now is None:
        attention.register_forward_pre_hook(_take_part, with_kwargs=True)


def _take_part(attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    names = ARGUMENTS[type(attention).__name__]
    changed = {name: tuple(_part(t, attention) for t in kwargs[name]) for name in names if kwargs.get(name) is not None}
    return args, {**kwargs, **changed}


def _part(table: Tensor, attention: Any) -> Tensor:
    """The rows of the kept heads; tables are (N, heads, L, D), (L, heads, D) or (N, L, heads * D)."""
    kept = list(attention.rotary_heads)
    if table.dim() == 4 or type(attention).__name__ == "MochiAttention":
        return table[:, kept]
    head_dim = attention.to_q.out_features // len(kept)
    part: Tensor = table.unflatten(-1, (-1, head_dim))[..., kept, :].flatten(-2)
    return part
