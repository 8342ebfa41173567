"""Which whole blocks a denoiser class can do without, and the entries of its config that say so."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

Config = Mapping[str, Any]


@dataclass(frozen=True)
class BlockList:
    """Blocks of one denoiser that may go one by one.

    name: how plans call it.
    units: of each block the paths of the modules that go together: its own first, then what belongs to it.
    shorter: (config, indices of the blocks that stay) -> the entries of the config that change.
    fixed: blocks that have to stay, since the forward uses them in a way of its own.
    may_empty: whether all of them may go.
    """

    name: str
    units: tuple[tuple[str, ...], ...]
    shorter: Callable[[Config, Sequence[int]], Config]
    fixed: frozenset[int] = frozenset()
    may_empty: bool = False


Finder = Callable[[Any], Iterator[BlockList]]
"""Denoiser -> the lists of blocks that its class can shorten."""


def listed(
    path: str,
    setting: str,
    *,
    beside: tuple[str, ...] = (),
    first_stays: bool = False,
    last_stays: bool = False,
    positions: str | None = None,
    positions_stay: bool = False,
    leading: str | None = None,
) -> Finder:
    """A list of equal blocks, `path`, whose number is the entry `setting` of the config.

    beside: module lists that lose the same entries. first_stays, last_stays: the forward uses that block in a way of
    its own. positions: entry of the config that lists block indices, which move up when blocks before them go;
    positions_stay: those blocks have to stay. leading: entry with the number of first blocks that are of another make.
    """

    def shorter(config: Config, kept: Sequence[int]) -> Config:
        changed: dict[str, Any] = {setting: len(kept)}
        if positions is not None:
            new = {old: position for position, old in enumerate(kept)}
            changed[positions] = [new[i] for i in config.get(positions) or () if i in new]
        if leading is not None:
            changed[leading] = sum(i < config[leading] for i in kept)
        return changed

    def found(denoiser: Any) -> Iterator[BlockList]:
        number = len(denoiser.get_submodule(path))
        units = tuple(tuple(f"{one}.{i}" for one in (path, *beside)) for i in range(number))
        fixed = [0] * first_stays + [number - 1] * last_stays
        if positions is not None and positions_stay:
            fixed += denoiser.config[positions]
        yield BlockList(path, units, shorter, frozenset(fixed))

    return found


def with_captions(denoiser: Any) -> Iterator[BlockList]:
    """The two lists of HiDream: each block has a layer of the text encoder and a projection of its own.

    Those of the last block also start the text stream.
    """
    double, single = len(denoiser.double_stream_blocks), len(denoiser.single_stream_blocks)

    def shorter_double(config: Config, kept: Sequence[int]) -> Config:
        layers = list(config["llama_layers"])
        own = [layers[i] for i in kept]
        return {"num_layers": len(kept), "llama_layers": own + layers[config["num_layers"] :]}

    def shorter_single(config: Config, kept: Sequence[int]) -> Config:
        layers, first = list(config["llama_layers"]), config["num_layers"]
        own = [layers[first + i] for i in kept]
        return {"num_single_layers": len(kept), "llama_layers": layers[:first] + own}

    doubles = tuple((f"double_stream_blocks.{i}", f"caption_projection.{i}") for i in range(double))
    singles = tuple((f"single_stream_blocks.{i}", f"caption_projection.{double + i}") for i in range(single))
    yield BlockList("double_stream_blocks", doubles, shorter_double)
    yield BlockList("single_stream_blocks", singles, shorter_single, frozenset([single - 1]))


def by_long_skips(denoiser: Any) -> Iterator[BlockList]:
    """The blocks of HunyuanDiT in pairs, the source of a long skip with its target; the two in the middle have none."""
    number = len(denoiser.blocks)
    pairs = tuple((f"blocks.{i}", f"blocks.{number - 1 - i}") for i in range(number // 2 - 1))
    yield BlockList("blocks", pairs, lambda config, kept: {"num_layers": 2 * len(kept) + 2}, may_empty=True)


_PLAIN = (listed("transformer_blocks", "num_layers"),)
_BLOCKS = (listed("blocks", "num_layers"),)
_LAYERS = (listed("layers", "num_layers"),)
_DOUBLE_AND_SINGLE = (*_PLAIN, listed("single_transformer_blocks", "num_single_layers"))

DEPTHS: Mapping[str, tuple[Finder, ...]] = {
    "DiTTransformer2DModel": (listed("transformer_blocks", "num_layers", first_stays=True),),
    "PixArtTransformer2DModel": _PLAIN,
    "SD3Transformer2DModel": (
        listed("transformer_blocks", "num_layers", last_stays=True, positions="dual_attention_layers"),
    ),
    "FluxTransformer2DModel": _DOUBLE_AND_SINGLE,
    "Flux2Transformer2DModel": _DOUBLE_AND_SINGLE,
    "BriaTransformer2DModel": _DOUBLE_AND_SINGLE,
    "HunyuanVideoTransformer3DModel": _DOUBLE_AND_SINGLE,
    "AuraFlowTransformer2DModel": (
        listed("joint_transformer_blocks", "num_mmdit_layers"),
        listed("single_transformer_blocks", "num_single_dit_layers"),
    ),
    "QwenImageTransformer2DModel": _PLAIN,
    "SanaTransformer2DModel": _PLAIN,
    "Lumina2Transformer2DModel": _LAYERS,
    "ZImageTransformer2DModel": (listed("layers", "n_layers"),),
    "OmniGenTransformer2DModel": _LAYERS,
    "CogVideoXTransformer3DModel": _PLAIN,
    "CogView3PlusTransformer2DModel": _PLAIN,
    "CogView4Transformer2DModel": _PLAIN,
    "LTXVideoTransformer3DModel": _PLAIN,
    "AllegroTransformer3DModel": _PLAIN,
    "LatteTransformer3DModel": (  # its first pair has the temporal position embedding added in between
        listed("transformer_blocks", "num_layers", beside=("temporal_transformer_blocks",), first_stays=True),
    ),
    "MochiTransformer3DModel": (listed("transformer_blocks", "num_layers", last_stays=True),),
    "WanTransformer3DModel": _BLOCKS,
    # hints come in behind the blocks that are listed
    "WanVACETransformer3DModel": (listed("blocks", "num_layers", positions="vace_layers", positions_stay=True),),
    "EasyAnimateTransformer3DModel": (listed("transformer_blocks", "num_layers", leading="mmdit_layers"),),
    "HiDreamImageTransformer2DModel": (with_captions,),
    "HunyuanDiT2DModel": (by_long_skips,),
    "PRXTransformer2DModel": (listed("blocks", "depth"),),
}
"""By diffusers class. A class is here when the model without a block equals the one with that block bypassed."""


def block_lists(denoiser: nn.Module) -> tuple[BlockList, ...]:
    """The lists of blocks that a denoiser can lose entries of; empty where its config cannot say so."""
    finders = next((DEPTHS[kind.__name__] for kind in type(denoiser).__mro__ if kind.__name__ in DEPTHS), ())
    lists = (found for finder in finders for found in finder(denoiser))
    return tuple(found for found in lists if len(found.units) > (0 if found.may_empty else 1))
