"""Attention heads as groups: rows of the query, key and value projections, columns of the output projection."""

from collections.abc import Iterator, Mapping

from torch import nn

from diffprune.groups.group import Count, Group, Slice
from diffprune.models.resize import layer_type, linear_below, number, width

QUERIES = ("to_q", "add_q_proj")
KEYS = ("to_k", "add_k_proj")
VALUES = ("to_v", "add_v_proj")
OUTPUTS = ("to_out.0", "to_out", "to_add_out")
NORMS: Mapping[str, tuple[str, ...]] = {
    "query": ("norm_q", "norm_added_q"),
    "key": ("norm_k", "norm_added_k"),
}
"""Layers of an attention by name. Norms that span all heads lose the units too, norms of one head stay."""

HEADS = ("heads", "num_heads", "n_heads", "num_attention_heads", "sliceable_head_dim")
KEY_VALUE_HEADS = ("kv_heads", "num_kv_heads", "num_key_value_heads")
QUERY_WIDTHS = ("inner_dim",)
KEY_WIDTHS = ("inner_kv_dim", "kv_inner_dim")
"""Attributes that count heads, or repeat their width, where an attention has them with that value."""


def heads_of(path: str, attention: nn.Module) -> Group | None:
    """The heads of one attention; None where the module is no attention of several heads.

    A unit is a key-value head with all query heads that share it. Widths of values may differ from those of keys.
    """
    heads = next((n for name in HEADS if (n := number(attention, name)) is not None), None)
    layers = {name: layer for name in (*QUERIES, *KEYS, *VALUES, *OUTPUTS) if (layer := linear_below(attention, name))}
    if heads is None or heads < 2 or not {"to_q", "to_k", "to_v"} <= layers.keys():
        return None
    query_width, key_width = layers["to_q"].out_features, layers["to_k"].out_features
    head_dim = query_width // heads
    units = key_width // head_dim if head_dim else 0
    if units < 2 or heads * head_dim != query_width or units * head_dim != key_width or heads % units:
        return None
    value_dim, rest = divmod(layers["to_v"].out_features, units)
    if rest:
        return None
    shared = heads // units
    widths = {"query": query_width, "key": key_width, "value": layers["to_v"].out_features}
    outgoing = value_dim * units * shared
    slices = [Slice(f"{path}.{n}", "out", 0, query_width // units) for n in QUERIES if _gives(layers, n, query_width)]
    slices += [Slice(f"{path}.{n}", "out", 0, head_dim) for n in KEYS if _gives(layers, n, key_width)]
    slices += [Slice(f"{path}.{n}", "out", 0, value_dim) for n in VALUES if _gives(layers, n, widths["value"])]
    taking = [n for n in OUTPUTS if n in layers and layers[n].in_features == outgoing]
    if not taking:
        return None
    slices += [Slice(f"{path}.{n}", "in", 0, value_dim * shared) for n in taking]
    slices += _norms(path, attention, widths, units, head_dim)
    return Group(f"{path}.to_q", "heads", units, tuple(slices), counts=tuple(_counts(path, attention, heads, units)))


def _gives(layers: Mapping[str, nn.Linear], name: str, size: int) -> bool:
    return name in layers and layers[name].out_features == size


def _norms(path: str, attention: nn.Module, widths: Mapping[str, int], units: int, head_dim: int) -> Iterator[Slice]:
    for role, names in NORMS.items():
        for name in names:
            norm = getattr(attention, name, None)
            if norm is None or layer_type(norm) is None:
                continue
            if width(norm, "out") == widths[role] != head_dim:
                yield Slice(f"{path}.{name}", "out", 0, widths[role] // units)


def _counts(path: str, attention: nn.Module, heads: int, units: int) -> Iterator[Count]:
    query_width = attention.get_submodule("to_q").out_features
    key_width = attention.get_submodule("to_k").out_features
    for names, value in (
        (HEADS, heads), (KEY_VALUE_HEADS, units), (QUERY_WIDTHS, query_width), (KEY_WIDTHS, key_width),
    ):  # fmt: skip
        for name in names:
            if number(attention, name) == value:
                yield Count(path, name, int(value) // units)
