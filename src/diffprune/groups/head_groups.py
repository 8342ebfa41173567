"""Groups of attention heads: rows of query, key and value projections, columns of the output projection."""

from collections.abc import Iterator, Sequence

from torch import nn

from diffprune.architectures.layouts import HEADS, KEY_VALUE_HEADS, WIDTHS, AttentionLayout
from diffprune.architectures.rotary import has_rotary_tables_of_all_heads
from diffprune.artifact.slicing import layer_below, linear_below, number, width
from diffprune.groups.group import Count, Group, Slice

Consumer = tuple[str, int]
"""Path of a layer whose input contains the heads, and the first of their columns."""


def head_group(
    path: str, attention: nn.Module, layouts: Sequence[AttentionLayout], *, consumer: Consumer | None = None
) -> Group | None:
    """Return the group of heads of one attention; None where the module is not a multi-head attention.

    A unit is a key-value head with all query heads that share it. Values may have another width than keys.
    consumer: the layer that takes the heads of an attention without an output projection.
    """
    heads = next((n for name in HEADS if (n := number(attention, name)) is not None), 0)
    if heads < 2:
        return None
    for layout in layouts:
        needed = [names[0] for names in (layout.queries, layout.keys, layout.values, layout.packed) if names]
        if not all(linear_below(attention, name) is not None for name in needed):
            continue
        outputs = _outputs(path, attention, layout) if consumer is None else [consumer]
        if outputs:
            split = _packed_heads if layout.packed else _separate_heads
            return split(path, attention, layout, heads, outputs)
    return None


def _outputs(path: str, attention: nn.Module, layout: AttentionLayout) -> list[Consumer]:
    return [(f"{path}.{name}", 0) for name in layout.outputs if linear_below(attention, name) is not None]


def _separate_heads(
    path: str, attention: nn.Module, layout: AttentionLayout, heads: int, outputs: list[Consumer]
) -> Group | None:
    rows = [_rows(attention, names[0]) for names in (layout.queries, layout.keys, layout.values)]
    head_dim = rows[0] // heads
    units = rows[1] // head_dim if head_dim else 0
    if units < 1 or heads * head_dim != rows[0] or units * head_dim != rows[1] or heads % units or rows[2] % units:
        return None
    if units == 1:
        return _multi_query_heads(path, attention, layout, heads, outputs)
    slices = []
    for names, norms, size in (
        (layout.queries, layout.query_norms, rows[0]),
        (layout.keys, layout.key_norms, rows[1]),
        (layout.values, (), rows[2]),
    ):
        slices += [Slice(f"{path}.{n}", "out", 0, size // units) for n in names if _rows(attention, n) == size]
        slices += [Slice(f"{path}.{n}", "out", 0, size // units) for n in norms if _spans(attention, n, size, head_dim)]
    slices += [Slice(f"{path}.{n}", "out", 0, heads // units) for n in layout.gates if _rows(attention, n) == heads]
    slices += [Slice(name, "in", start, rows[2] // units * (heads // units)) for name, start in outputs]
    counts = _counts(path, attention, layout, (heads, units), (rows[0], rows[1]))
    rotary = path if has_rotary_tables_of_all_heads(attention) else None
    return Group(f"{path}.{layout.queries[0]}", "heads", units, tuple(slices), counts=tuple(counts), rotary=rotary)


def _multi_query_heads(
    path: str, attention: nn.Module, layout: AttentionLayout, heads: int, outputs: list[Consumer]
) -> Group | None:
    """Return the query heads of a multi-query attention; its single key and value are kept."""
    size = _rows(attention, layout.queries[0])
    head_dim, value_dim = size // heads, _rows(attention, layout.values[0])
    if any(_spans(attention, name, size, head_dim) for name in layout.query_norms):
        return None
    slices = [Slice(f"{path}.{n}", "out", 0, head_dim) for n in layout.queries if _rows(attention, n) == size]
    slices += [Slice(name, "in", start, value_dim) for name, start in outputs]
    counts = _counts(path, attention, layout, (heads, heads), (size,))
    return Group(f"{path}.{layout.queries[0]}", "heads", heads, tuple(slices), counts=tuple(counts))


def _packed_heads(
    path: str, attention: nn.Module, layout: AttentionLayout, heads: int, outputs: list[Consumer]
) -> Group | None:
    consumer = linear_below(attention, outputs[0][0].removeprefix(f"{path}."))
    size = 0 if consumer is None else consumer.in_features
    present = [name for name in layout.packed if _rows(attention, name)]
    if not size or size % heads or any(_rows(attention, name) % size for name in present):
        return None
    slices = [
        Slice(f"{path}.{name}", "out", start, size // heads)
        for name in present
        for start in range(0, _rows(attention, name), size)
    ]
    slices += [Slice(name, "in", start, size // heads) for name, start in outputs]
    counts = _counts(path, attention, layout, (heads, heads), (size,))
    return Group(f"{path}.{layout.packed[0]}", "heads", heads, tuple(slices), counts=tuple(counts))


def _rows(attention: nn.Module, name: str) -> int:
    layer = linear_below(attention, name)
    return 0 if layer is None else layer.out_features


def _spans(attention: nn.Module, name: str, size: int, head_dim: int) -> bool:
    """Return whether a norm spans all heads."""
    norm = layer_below(attention, name)
    return norm is not None and width(norm, "out") == size != head_dim


def _counts(
    path: str, attention: nn.Module, layout: AttentionLayout, numbers: tuple[int, int], widths: tuple[int, ...]
) -> Iterator[Count]:
    heads, units = numbers
    attributes = ((HEADS, (heads,)), (KEY_VALUE_HEADS, (units,)), ((*WIDTHS, *layout.widths), widths))
    for names, values in attributes:
        for name in names:
            value = number(attention, name)
            if value is not None and value in values:
                yield Count(path, name, value // units)
