"""Remove whole blocks from a denoiser: build the same class from a config with fewer blocks."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from diffprune.architectures.depth.block_table import block_lists
from diffprune.artifact.manifest import apply_manifest, manifest_of
from diffprune.artifact.pruned_classes import empty_model, stock_class, stock_model

Moves = Mapping[str, str | None]
"""Path of a module -> its path after blocks were removed; None for a removed module."""


def keep_blocks(denoiser: ModelMixin, kept: Mapping[str, Sequence[int]]) -> ModelMixin:
    """Return a denoiser with the kept blocks only; it shares its weights with `denoiser`, which does not change.

    kept: name of a block list -> indices, ascending. Lists that are not in it keep all blocks.
    The result is built from the stock config with fewer blocks: it is a stock model if no widths were pruned.
    Raises ValueError for a block that cannot be removed.
    """
    config: dict[str, Any] = {**cast(Any, denoiser).config}
    config.pop("_use_default_values", None)  # diffusers would reset the entries that it lists to their defaults
    moved = moves(denoiser, kept)
    for blocks in block_lists(denoiser):
        if blocks.name not in kept:
            continue
        indices = kept[blocks.name]
        missing = blocks.fixed - {*indices}
        if missing or not (indices or blocks.may_empty):
            raise ValueError(
                f"{blocks.name}: block {min(missing, default=0)} of a {type(denoiser).__name__} cannot be removed"
            )
        config |= blocks.shorter(config, indices)
    widths = manifest_of(denoiser, stock_model(denoiser), [])
    fresh = empty_model(stock_class(denoiser), config)
    if widths.modules:
        by_path = {name: _renamed(getattr(widths, name), moved) for name in ("modules", "rotary_heads")}
        apply_manifest(widths.model_copy(update=by_path), fresh)
    fresh.load_state_dict(_renamed(denoiser.state_dict(), moved), assign=True)
    device = next(denoiser.parameters()).device
    if device.type != "meta":
        cast(nn.Module, fresh).to(device)  # buffers; the shared weights are on it already
    return fresh.train(denoiser.training)


def moves(denoiser: nn.Module, kept: Mapping[str, Sequence[int]]) -> Moves:
    """Return the new path of every module that moves or is removed. kept: name of a block list -> indices."""
    removed = {
        path
        for blocks in block_lists(denoiser)
        if blocks.name in kept
        for index, unit in enumerate(blocks.units)
        if index not in kept[blocks.name]
        for path in unit
    }
    moved: dict[str, str | None] = dict.fromkeys(removed)
    for parent in {path.rpartition(".")[0] for path in removed}:
        modules = denoiser.get_submodule(parent)
        if isinstance(modules, nn.ModuleList):
            remaining = [path for i in range(len(modules)) if (path := f"{parent}.{i}") not in removed]
            moved |= {path: f"{parent}.{position}" for position, path in enumerate(remaining)}
    return moved


def path_after(path: str, moved: Moves) -> str | None:
    """Return the path of a module or parameter after blocks were removed; None if its own block was."""
    end = -1
    while end < len(path):
        end = path.find(".", end + 1)
        end = len(path) if end == -1 else end
        if path[:end] in moved:
            new = moved[path[:end]]
            return None if new is None else new + path[end:]
    return path


def _renamed(values: Mapping[str, Any], moved: Moves) -> dict[str, Any]:
    return {new: value for path, value in values.items() if (new := path_after(path, moved)) is not None}
