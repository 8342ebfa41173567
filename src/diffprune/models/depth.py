"""Which whole blocks a denoiser class can do without, and the smaller model of a stock config that says so."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from diffprune.models.manifest import apply_manifest, manifest_of
from diffprune.models.pruned import empty_model, stock_class, stock_model


@dataclass(frozen=True)
class BlockList:
    """Equal blocks one after the other, whose number is an entry of the config.

    paths: module lists that lose the same entries. setting: config entry with their number.
    first_stays, last_stays: the forward uses that block in a way of its own.
    positions: config entries that list block indices, which move up when blocks before them go.
    """

    paths: tuple[str, ...]
    setting: str
    first_stays: bool = False
    last_stays: bool = False
    positions: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """How plans call it: its first path."""
        return self.paths[0]

    def fixed(self, num_blocks: int) -> set[int]:
        """Indices of the blocks that have to stay."""
        first, last = [0] * self.first_stays, [num_blocks - 1] * self.last_stays
        return {*first, *last}


_PLAIN = (BlockList(("transformer_blocks",), "num_layers"),)
_BLOCKS = (BlockList(("blocks",), "num_layers"),)
_DOUBLE_AND_SINGLE = (*_PLAIN, BlockList(("single_transformer_blocks",), "num_single_layers"))

DEPTHS: Mapping[str, tuple[BlockList, ...]] = {
    "DiTTransformer2DModel": (BlockList(("transformer_blocks",), "num_layers", first_stays=True),),
    "PixArtTransformer2DModel": _PLAIN,
    "SD3Transformer2DModel": (
        BlockList(("transformer_blocks",), "num_layers", last_stays=True, positions=("dual_attention_layers",)),
    ),
    "FluxTransformer2DModel": _DOUBLE_AND_SINGLE,
    "Flux2Transformer2DModel": _DOUBLE_AND_SINGLE,
    "BriaTransformer2DModel": _DOUBLE_AND_SINGLE,
    "HunyuanVideoTransformer3DModel": _DOUBLE_AND_SINGLE,
    "AuraFlowTransformer2DModel": (
        BlockList(("joint_transformer_blocks",), "num_mmdit_layers"),
        BlockList(("single_transformer_blocks",), "num_single_dit_layers"),
    ),
    "QwenImageTransformer2DModel": _PLAIN,
    "SanaTransformer2DModel": _PLAIN,
    "Lumina2Transformer2DModel": (BlockList(("layers",), "num_layers"),),
    "ZImageTransformer2DModel": (BlockList(("layers",), "n_layers"),),
    "OmniGenTransformer2DModel": (BlockList(("layers",), "num_layers"),),
    "CogVideoXTransformer3DModel": _PLAIN,
    "CogView3PlusTransformer2DModel": _PLAIN,
    "CogView4Transformer2DModel": _PLAIN,
    "LTXVideoTransformer3DModel": _PLAIN,
    "AllegroTransformer3DModel": _PLAIN,
    "LatteTransformer3DModel": (  # its first pair has the temporal position embedding added in between
        BlockList(("transformer_blocks", "temporal_transformer_blocks"), "num_layers", first_stays=True),
    ),
    "MochiTransformer3DModel": (BlockList(("transformer_blocks",), "num_layers", last_stays=True),),
    "WanTransformer3DModel": _BLOCKS,
    "PRXTransformer2DModel": (BlockList(("blocks",), "depth"),),
}
"""By diffusers class. A class is here when the model without a block equals the one with that block bypassed."""


def block_lists(denoiser: nn.Module) -> tuple[BlockList, ...]:
    """The lists of blocks that a denoiser can lose entries of; empty where its config cannot say so."""
    for kind in type(denoiser).__mro__:
        if kind.__name__ in DEPTHS:
            return tuple(found for found in DEPTHS[kind.__name__] if num_blocks(denoiser, found) > 1)
    return ()


def num_blocks(denoiser: nn.Module, blocks: BlockList) -> int:
    """How many entries a list has."""
    return len(cast(nn.ModuleList, denoiser.get_submodule(blocks.name)))


def keep_blocks(denoiser: ModelMixin, kept: Mapping[str, Sequence[int]]) -> ModelMixin:
    """The denoiser with only the kept blocks of the named lists, its weights shared; `denoiser` is untouched.

    kept: name of a list -> indices, ascending. The result is built from the stock config with fewer blocks, so that it
    is a stock model where no widths were pruned. Raises ValueError for a block that has to stay.
    """
    config: Any = denoiser.config
    moved = moves(denoiser, kept)
    changed: dict[str, Any] = {}
    for blocks in block_lists(denoiser):
        if blocks.name not in kept:
            continue
        indices, new = kept[blocks.name], moved[blocks.name]
        lacking = blocks.fixed(num_blocks(denoiser, blocks)) - {*indices}
        if lacking or not indices:
            raise ValueError(
                f"{blocks.name}: block {min(lacking, default=0)} of a {type(denoiser).__name__} has to stay"
            )
        changed[blocks.setting] = len(indices)
        changed |= {entry: [new[i] for i in config.get(entry) or () if i in new] for entry in blocks.positions}
    widths = manifest_of(denoiser, stock_model(denoiser), [])
    fresh = empty_model(stock_class(denoiser), {**config, **changed})
    if widths.modules:
        by_path = {name: _renamed(getattr(widths, name), moved) for name in ("modules", "rotary_heads")}
        apply_manifest(widths.model_copy(update=by_path), fresh)
    fresh.load_state_dict(_renamed(denoiser.state_dict(), moved), assign=True)
    return fresh.train(denoiser.training)


def moves(denoiser: nn.Module, kept: Mapping[str, Sequence[int]]) -> dict[str, dict[int, int]]:
    """Path of each module list -> old index of a kept block -> its new one."""
    return {
        path: {old: position for position, old in enumerate(kept[found.name])}
        for found in block_lists(denoiser)
        if found.name in kept
        for path in found.paths
    }


def path_after(path: str, moved: Mapping[str, Mapping[int, int]]) -> str | None:
    """Where a module or parameter is after blocks have moved up; None when its block is gone.

    moved: path of a module list -> old index -> new index.
    """
    for prefix, new in moved.items():
        match = re.match(rf"{re.escape(prefix)}\.(\d+)(?=\.|$)", path)
        if match:
            index = new.get(int(match.group(1)))
            return None if index is None else f"{prefix}.{index}{path[match.end() :]}"
    return path


def _renamed(values: Mapping[str, Any], moved: Mapping[str, Mapping[int, int]]) -> dict[str, Any]:
    return {new: value for path, value in values.items() if (new := path_after(path, moved)) is not None}
