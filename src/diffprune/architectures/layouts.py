"""Layer names of attentions and feed-forwards, by which `groups` finds heads and neurons."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class AttentionLayout:
    """Layer paths of an attention, below it; the first path of each kind is required, the others are optional.

    queries, keys, values: projections with one output row per head and head dimension.
    packed: projections to several of the three, in consecutive chunks. outputs: layers whose inputs are the heads.
    gates: layers with one output row per head. widths: additional attributes that repeat the width of all heads.
    query_norms, key_norms: norms over all heads are pruned with them, norms over one head are kept.
    """

    queries: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    packed: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    gates: tuple[str, ...] = ()
    widths: tuple[str, ...] = ()
    query_norms: tuple[str, ...] = ()
    key_norms: tuple[str, ...] = ()


@dataclass(frozen=True)
class FeedForwardLayout:
    """Layer paths of a feed-forward, below it.

    firsts: layers with one output row per neuron; a gated layer has two, first all of one kind, then all of the other.
    between: depthwise layers and norms over the output of the firsts. last: the layer whose inputs are the neurons.
    only_in: class that the layout is restricted to, if other modules use the same names differently.
    """

    firsts: tuple[str, ...]
    last: str
    between: tuple[str, ...] = ()
    only_in: str | None = None


ATTENTIONS: Sequence[AttentionLayout] = (
    AttentionLayout(
        queries=("to_q", "add_q_proj", "to_q_t", "to_gate", "to_g"),
        keys=("to_k", "add_k_proj", "to_k_t"),
        values=("to_v", "add_v_proj", "to_v_t"),
        outputs=("to_out.0", "to_out", "to_add_out", "to_out_t"),
        gates=("to_gate_logits", "to_bias"),
        query_norms=("norm_q", "norm_added_q", "q_rms_norm", "q_rms_norm_t", "q_norm"),
        key_norms=("norm_k", "norm_added_k", "k_rms_norm", "k_rms_norm_t", "k_norm"),
    ),
    AttentionLayout(queries=("to_query",), keys=("to_key",), values=("to_value",), outputs=("out_layer",)),
    AttentionLayout(packed=("to_qkv",), outputs=("to_out", "to_out.0")),
    AttentionLayout(packed=("to_kv", "to_q"), outputs=("to_out", "to_out.0")),
    AttentionLayout(packed=("img_attn_qkv", "txt_attn_qkv"), outputs=("img_attn_proj", "txt_attn_proj")),
    AttentionLayout(packed=("img_qkv_proj", "txt_kv_proj"), outputs=("to_out.0",)),
)
"""In order of precedence: the first layout whose layers an attention has applies to it."""

FEED_FORWARDS: Sequence[FeedForwardLayout] = (
    FeedForwardLayout(("net.0.proj",), "net.2"),
    FeedForwardLayout(("gate_proj", "up_proj"), "down_proj"),
    FeedForwardLayout(("gate_proj", "up_proj"), "linear_fc2"),
    FeedForwardLayout(("gate_up_proj",), "down_proj"),
    FeedForwardLayout(("up_proj",), "down_proj"),
    FeedForwardLayout(("gate", "up"), "down"),
    FeedForwardLayout(("w1", "w3"), "w2"),
    FeedForwardLayout(("linear_1", "linear_3"), "linear_2"),
    FeedForwardLayout(("linear_1", "linear_2"), "out_projection"),
    FeedForwardLayout(("linear_in",), "linear_out"),
    FeedForwardLayout(("in_layer",), "out_layer"),
    FeedForwardLayout(("proj", "gate_layer"), "out"),
    FeedForwardLayout(("ff_in",), "ff_out"),
    FeedForwardLayout(("fc1",), "fc2"),
    FeedForwardLayout(("wi_0", "wi_1"), "wo"),
    FeedForwardLayout(("swish_linear.0",), "linear_out"),
    FeedForwardLayout(("conv_inverted",), "conv_point", between=("conv_depth",)),
    FeedForwardLayout(("channelwise_linear_1",), "channelwise_linear_2", between=("channelwise_norm",)),
    FeedForwardLayout(("inverted_conv.conv",), "point_conv.conv", between=("depth_conv.conv",)),
    FeedForwardLayout(("proj_in",), "proj_out", only_in="StableAudio3FeedForward"),
    FeedForwardLayout(("linear_1",), "linear_2", only_in="PixArtAlphaTextProjection"),
    FeedForwardLayout(("linear_1",), "linear_2", only_in="RFD4ProteinaPairTransition"),
)
"""In order of precedence: the first layout whose layers a feed-forward has applies to it."""

HEADS = ("heads", "num_heads", "n_heads", "num_attention_heads", "sliceable_head_dim")
KEY_VALUE_HEADS = ("kv_heads", "num_kv_heads", "num_key_value_heads")
WIDTHS = ("inner_dim", "inner_kv_dim", "kv_inner_dim")
"""Attributes with the number of heads, of key and value heads, and with the width of all heads."""

OTHER_WIDTHS = ("out_dim",)
"""Attributes that repeat the width of all heads in some classes only."""

HIDDEN_WIDTHS = ("mlp_hidden_dim",)
"""Attributes that repeat the number of neurons."""
