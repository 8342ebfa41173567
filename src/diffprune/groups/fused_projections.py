"""Groups of heads and neurons in blocks whose attention and feed-forward share a projection."""

from collections.abc import Iterator, Sequence

from torch import nn

from diffprune.architectures.layouts import HEADS, HIDDEN_WIDTHS, AttentionLayout
from diffprune.artifact.slicing import linear_below, number
from diffprune.groups.group import Count, Group, Slice
from diffprune.groups.head_groups import head_group


def shared_output_groups(path: str, block: nn.Module, layouts: Sequence[AttentionLayout]) -> Iterator[Group]:
    """Yield the groups of a block whose `proj_out` takes [heads of `attn` | neurons of `proj_mlp`].

    Flux's single blocks have this layout.
    """
    attention, last, first = (block._modules.get(name) for name in ("attn", "proj_out", "proj_mlp"))
    if attention is None or not isinstance(last, nn.Linear) or not isinstance(first, nn.Linear):
        return
    heads = head_group(f"{path}.attn", attention, layouts, consumer=(f"{path}.proj_out", 0))
    if heads is None:
        return
    head_columns = heads.num_units * heads.slices[-1].width
    neurons = last.in_features - head_columns
    if neurons < 1 or first.out_features not in (neurons, 2 * neurons):
        return
    yield heads
    slices = [Slice(f"{path}.proj_mlp", "out", start, 1) for start in range(0, first.out_features, neurons)]
    slices.append(Slice(f"{path}.proj_out", "in", head_columns, 1))
    yield Group(f"{path}.proj_mlp", "neurons", neurons, tuple(slices), counts=tuple(_hidden(path, block, neurons)))


def parallel_attention_groups(path: str, attention: nn.Module) -> Iterator[Group]:
    """Yield the groups of an attention with `to_qkv_mlp_proj` [q | k | v | value and gate rows] and one `to_out`.

    Flux2's single blocks have this layout.
    """
    first, last = linear_below(attention, "to_qkv_mlp_proj"), linear_below(attention, "to_out")
    neurons, heads = number(attention, "mlp_hidden_dim"), number(attention, "heads")
    if first is None or last is None or not neurons or not heads:
        return
    head_columns = last.in_features - neurons
    head_dim = head_columns // heads
    producer, consumer = f"{path}.to_qkv_mlp_proj", f"{path}.to_out"
    slices = [Slice(producer, "out", chunk * head_columns, head_dim) for chunk in range(3)]
    counts = [Count(path, name, 1) for name in HEADS if number(attention, name) == heads]
    counts += [Count(path, "inner_dim", head_dim)] if number(attention, "inner_dim") == head_columns else []
    yield Group(producer, "heads", heads, (*slices, Slice(consumer, "in", 0, head_dim)), counts=tuple(counts))
    slices = [Slice(producer, "out", start, 1) for start in range(3 * head_columns, first.out_features, neurons)]
    counts = list(_hidden(path, attention, neurons))
    yield Group(consumer, "neurons", neurons, (*slices, Slice(consumer, "in", head_columns, 1)), counts=tuple(counts))


def _hidden(path: str, module: nn.Module, neurons: int) -> Iterator[Count]:
    for name in HIDDEN_WIDTHS:
        if number(module, name) == neurons:
            yield Count(path, name, 1)
