"""Heads and neurons of blocks in which attention and feed-forward share a projection."""

from collections.abc import Iterator, Sequence

from torch import nn

from diffprune.architectures.layouts import HEADS, HIDDEN_WIDTHS, AttentionLayout
from diffprune.artifact.slicing import linear_below, number
from diffprune.groups.group import Count, Group, Slice
from diffprune.groups.head_groups import heads_of


def of_shared_output(path: str, block: nn.Module, layouts: Sequence[AttentionLayout]) -> Iterator[Group]:
    """A block whose `proj_out` takes [heads of `attn` | neurons of `proj_mlp`], as in Flux's single blocks."""
    attention, last, first = (block._modules.get(name) for name in ("attn", "proj_out", "proj_mlp"))
    if attention is None or not isinstance(last, nn.Linear) or not isinstance(first, nn.Linear):
        return
    heads = heads_of(f"{path}.attn", attention, layouts, taken_by=(f"{path}.proj_out", 0))
    if heads is None:
        return
    attended = heads.num_units * heads.slices[-1].width
    neurons = last.in_features - attended
    if neurons < 1 or first.out_features not in (neurons, 2 * neurons):
        return
    yield heads
    slices = [Slice(f"{path}.proj_mlp", "out", start, 1) for start in range(0, first.out_features, neurons)]
    slices.append(Slice(f"{path}.proj_out", "in", attended, 1))
    yield Group(f"{path}.proj_mlp", "neurons", neurons, tuple(slices), counts=tuple(_hidden(path, block, neurons)))


def of_parallel_attention(path: str, attention: nn.Module) -> Iterator[Group]:
    """An attention whose `to_qkv_mlp_proj` gives [q | k | v | value and gate rows] and whose `to_out` takes both.

    As in Flux2's single blocks.
    """
    first, last = linear_below(attention, "to_qkv_mlp_proj"), linear_below(attention, "to_out")
    neurons, heads = number(attention, "mlp_hidden_dim"), number(attention, "heads")
    if first is None or last is None or not neurons or not heads:
        return
    attended = last.in_features - neurons
    head_dim = attended // heads
    giving, taking = f"{path}.to_qkv_mlp_proj", f"{path}.to_out"
    slices = [Slice(giving, "out", chunk * attended, head_dim) for chunk in range(3)]
    counts = [Count(path, name, 1) for name in HEADS if number(attention, name) == heads]
    counts += [Count(path, "inner_dim", head_dim)] if number(attention, "inner_dim") == attended else []
    yield Group(giving, "heads", heads, (*slices, Slice(taking, "in", 0, head_dim)), counts=tuple(counts))
    slices = [Slice(giving, "out", start, 1) for start in range(3 * attended, first.out_features, neurons)]
    counts = list(_hidden(path, attention, neurons))
    yield Group(taking, "neurons", neurons, (*slices, Slice(taking, "in", attended, 1)), counts=tuple(counts))


def _hidden(path: str, module: nn.Module, neurons: int) -> Iterator[Count]:
    for name in HIDDEN_WIDTHS:
        if number(module, name) == neurons:
            yield Count(path, name, 1)
