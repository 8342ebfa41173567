"""Block lists that are more than one `nn.ModuleList` with a length in the config: HiDream, HunyuanDiT, UNets."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from diffprune.architectures.depth.block_lists import BlockList, Config


def hidream_blocks(denoiser: Any) -> Iterator[BlockList]:
    """Yield the two lists of HiDream: each block has its own layer of the text encoder and its own projection.

    The last block of all is fixed, because its projection also starts the text stream.
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


def long_skip_pairs(denoiser: Any) -> Iterator[BlockList]:
    """Yield the blocks of HunyuanDiT as pairs, the source and target of a long skip; the middle two have no skip."""
    number = len(denoiser.blocks)
    pairs = tuple((f"blocks.{i}", f"blocks.{number - 1 - i}") for i in range(number // 2 - 1))
    yield BlockList("blocks", pairs, lambda config, kept: {"num_layers": 2 * len(kept) + 2}, may_empty=True)


def attention_blocks(denoiser: Any) -> Iterator[BlockList]:
    """Yield the transformer blocks of each attention of a UNet; without any, its projections remain.

    `transformer_layers_per_block` counts them per level or per attention; in the latter case the up blocks have their
    own entry. The middle has as many as the first attention of the last level: both lose the same blocks.
    """
    last = len(denoiser.down_blocks) - 1
    in_middle = _block_counts(denoiser.mid_block)
    for level, block in enumerate(denoiser.down_blocks):
        counts = _block_counts(block)
        for position, number in enumerate(counts):
            path = f"down_blocks.{level}.attentions.{position}.transformer_blocks"
            paths = (path, _MIDDLE) if in_middle and (level, position) == (last, 0) else (path,)
            yield _of_attention(paths, number, _DOWN, level, position, len(counts))
    if in_middle and not _block_counts(denoiser.down_blocks[last]):
        yield _of_attention((_MIDDLE,), in_middle[0], _DOWN, last, 0, 1)
    for level, block in enumerate(denoiser.up_blocks):
        counts = _block_counts(block)
        for position, number in enumerate(counts):
            path = f"up_blocks.{level}.attentions.{position}.transformer_blocks"
            yield _of_attention((path,), number, _UP, level, position, len(counts))


def mid_block(denoiser: Any) -> Iterator[BlockList]:
    """Yield the middle block of a UNet as a list of one."""

    def shorter(config: Config, kept: Sequence[int]) -> Config:
        return {} if kept else {"mid_block_type": None}

    if denoiser.mid_block is not None:
        yield BlockList("mid_block", (("mid_block",),), shorter, may_empty=True)


_MIDDLE = "mid_block.attentions.0.transformer_blocks"
_DOWN, _UP = "transformer_layers_per_block", "reverse_transformer_layers_per_block"


def _block_counts(block: nn.Module | None) -> list[int]:
    """Return the number of transformer blocks per attention of a UNet block; empty for attentions without any."""
    attentions: Any = getattr(block, "attentions", ())
    if not all(hasattr(attention, "transformer_blocks") for attention in attentions):
        return []
    return [len(attention.transformer_blocks) for attention in attentions]


def _of_attention(
    paths: tuple[str, ...], number: int, setting: str, level: int, position: int, num_attentions: int
) -> BlockList:
    """Return the list at `paths`: attention `position` of the `num_attentions` of a level in config entry `setting`."""

    def shorter(config: Config, kept: Sequence[int]) -> Config:
        setting_down = config[_DOWN]
        levels = len(config["down_block_types"])
        down = [setting_down] * levels if isinstance(setting_down, int) else list(setting_down)
        up = list(config.get(_UP) or reversed(down))
        side = up if setting == _UP else down
        count = side[level]
        counts = [count] * num_attentions if isinstance(count, int) else list(count)
        counts[position] = len(kept)
        side[level] = counts[0] if len({*counts}) == 1 else counts
        return {_DOWN: down, _UP: None if up == [*reversed(down)] else up}

    units = tuple(tuple(f"{path}.{i}" for path in paths) for i in range(number))
    return BlockList(paths[0], units, shorter, may_empty=True)
