"""Slice rotary tables that hold all heads of the stock model, for attentions whose heads were removed."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "LTXAttention": ("image_rotary_emb",),
    "LTX2Attention": ("query_rotary_emb", "key_rotary_emb"),
    "MochiAttention": ("image_rotary_emb",),
    "SanaWMLTX2Attention": ("query_rotary_emb", "key_rotary_emb"),
}
"""Attention class -> arguments of its forward pass with a table of all stock heads."""

KEPT_HEADS = "rotary_heads"
"""Attribute of such an attention with the stock heads that it kept, ascending."""


def kept_heads_of(attention: nn.Module) -> tuple[int, ...] | None:
    """Return the stock heads that an attention kept; None if no head was removed."""
    return getattr(attention, KEPT_HEADS, None)


def has_rotary_tables_of_all_heads(attention: nn.Module) -> bool:
    """Return whether an attention receives rotary tables of all stock heads."""
    return type(attention).__name__ in ARGUMENTS


def slice_rotary_tables(attention: Any, heads: Sequence[int]) -> None:
    """Make an attention slice the rotary tables that it receives to its kept heads.

    heads: indices of the kept heads among its current ones.
    """
    current = kept_heads_of(attention)
    setattr(attention, KEPT_HEADS, tuple(heads if current is None else [current[head] for head in heads]))
    if current is None:
        attention.register_forward_pre_hook(_slice_arguments, with_kwargs=True)


def _slice_arguments(
    attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    tables = {name: kwargs[name] for name in ARGUMENTS[type(attention).__name__] if kwargs.get(name) is not None}
    return args, {**kwargs, **{name: tuple(_slice(t, attention) for t in pair) for name, pair in tables.items()}}


def _slice(table: Tensor, attention: Any) -> Tensor:
    """Return the kept heads of a table: (N, heads, L, D), (L, heads, D) or (N, L, heads * D)."""
    kept = list(attention.rotary_heads)
    if table.dim() == 4 or type(attention).__name__ == "MochiAttention":
        return table[:, kept]
    head_dim = attention.to_q.out_features // len(kept)
    sliced: Tensor = table.unflatten(-1, (-1, head_dim))[..., kept, :].flatten(-2)
    return sliced
