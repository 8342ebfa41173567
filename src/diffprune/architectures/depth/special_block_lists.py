"""Lists of blocks that are not just a ModuleList whose length the config says: HiDream, HunyuanDiT, UNets."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from diffprune.architectures.depth.block_lists import BlockList, Config


def with_captions(denoiser: Any) -> Iterator[BlockList]:
    """The two lists of HiDream: each block has a layer of the text encoder and a projection of its own.

    Those of the last block of all also start the text stream, so that it stays.
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
    yield BlockList("double_stream_blocks", doubles, shorter_double, frozenset([] if single else [double - 1]))
    yield BlockList("single_stream_blocks", singles, shorter_single, frozenset([single - 1]))


def by_long_skips(denoiser: Any) -> Iterator[BlockList]:
    """The blocks of HunyuanDiT in pairs, the source of a long skip with its target; the two in the middle have none."""
    number = len(denoiser.blocks)
    pairs = tuple((f"blocks.{i}", f"blocks.{number - 1 - i}") for i in range(number // 2 - 1))
    yield BlockList("blocks", pairs, lambda config, kept: {"num_layers": 2 * len(kept) + 2}, may_empty=True)


def of_attentions(denoiser: Any) -> Iterator[BlockList]:
    """The transformer blocks of each attention of a UNet; what is left of one without any are its projections.

    `transformer_layers_per_block` counts them by level or by attention, the way up then has an entry of its own. The
    middle has as many as the first attention of the last level, so that those two lose theirs together.
    """
    last = len(denoiser.down_blocks) - 1
    in_middle = _numbers(denoiser.mid_block)
    for level, block in enumerate(denoiser.down_blocks):
        numbers = _numbers(block)
        for position, number in enumerate(numbers):
            path = f"down_blocks.{level}.attentions.{position}.transformer_blocks"
            along = (path, _MIDDLE) if in_middle and (level, position) == (last, 0) else (path,)
            yield _of_attention(along, number, _DOWN, level, position, len(numbers))
    if in_middle and not _numbers(denoiser.down_blocks[last]):
        yield _of_attention((_MIDDLE,), in_middle[0], _DOWN, last, 0, 1)
    for level, block in enumerate(denoiser.up_blocks):
        numbers = _numbers(block)
        for position, number in enumerate(numbers):
            path = f"up_blocks.{level}.attentions.{position}.transformer_blocks"
            yield _of_attention((path,), number, _UP, level, position, len(numbers))


def middle(denoiser: Any) -> Iterator[BlockList]:
    """The block in the middle of a UNet."""

    def shorter(config: Config, kept: Sequence[int]) -> Config:
        return {} if kept else {"mid_block_type": None}

    if denoiser.mid_block is not None:
        yield BlockList("mid_block", (("mid_block",),), shorter, may_empty=True)


_MIDDLE = "mid_block.attentions.0.transformer_blocks"
_DOWN, _UP = "transformer_layers_per_block", "reverse_transformer_layers_per_block"


def _numbers(block: nn.Module | None) -> list[int]:
    """How many transformer blocks the attentions of a part of a UNet have; empty where they are of another make."""
    attentions: Any = getattr(block, "attentions", ())
    if not all(hasattr(attention, "transformer_blocks") for attention in attentions):
        return []
    return [len(attention.transformer_blocks) for attention in attentions]


def _of_attention(
    paths: tuple[str, ...], number: int, setting: str, level: int, position: int, num_attentions: int
) -> BlockList:
    """The list at `paths`, counted in the entry `setting` as attention `position` of `num_attentions` of a level."""

    def shorter(config: Config, kept: Sequence[int]) -> Config:
        given = config[_DOWN]
        down = [given] * len(config["down_block_types"]) if isinstance(given, int) else list(given)
        way_up = list(config.get(_UP) or reversed(down))
        side = way_up if setting == _UP else down
        there = side[level]
        numbers = [there] * num_attentions if isinstance(there, int) else list(there)
        numbers[position] = len(kept)
        side[level] = numbers[0] if len({*numbers}) == 1 else numbers
        return {_DOWN: down, _UP: None if way_up == [*reversed(down)] else way_up}

    units = tuple(tuple(f"{path}.{i}" for path in paths) for i in range(number))
    return BlockList(paths[0], units, shorter, may_empty=True)
