"""The smaller model of a stock config that is left of a denoiser without some of its blocks."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from diffprune.architectures.depth.block_table import block_lists
from diffprune.artifact.manifest import apply_manifest, manifest_of
from diffprune.artifact.pruned_classes import empty_model, stock_class, stock_model

Moves = Mapping[str, str | None]
"""Path of a module -> where it is after blocks have gone; None for one that is gone."""


def keep_blocks(denoiser: ModelMixin, kept: Mapping[str, Sequence[int]]) -> ModelMixin:
    """The denoiser with only the kept blocks of the named lists, its weights shared; `denoiser` is untouched.

    kept: name of a list -> indices, ascending. The result is built from the stock config with fewer blocks, so that it
    is a stock model where no widths were pruned. Raises ValueError for a block that has to stay.
    """
    config: dict[str, Any] = {**cast(Any, denoiser).config}
    config.pop("_use_default_values", None)  # names entries that diffusers would set back to their defaults
    moved = moves(denoiser, kept)
    for blocks in block_lists(denoiser):
        if blocks.name not in kept:
            continue
        indices = kept[blocks.name]
        lacking = blocks.fixed - {*indices}
        if lacking or not (indices or blocks.may_empty):
            raise ValueError(
                f"{blocks.name}: block {min(lacking, default=0)} of a {type(denoiser).__name__} has to stay"
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
        cast(nn.Module, fresh).to(device)  # the tables: the weights are there
    return fresh.train(denoiser.training)


def moves(denoiser: nn.Module, kept: Mapping[str, Sequence[int]]) -> Moves:
    """What moves and what is gone when only the kept blocks of the named lists remain: name -> indices."""
    gone = {
        path
        for found in block_lists(denoiser)
        if found.name in kept
        for index, unit in enumerate(found.units)
        if index not in kept[found.name]
        for path in unit
    }
    moved: dict[str, str | None] = dict.fromkeys(gone)
    for parent in {path.rpartition(".")[0] for path in gone}:
        modules = denoiser.get_submodule(parent)
        if isinstance(modules, nn.ModuleList):
            left = [path for i in range(len(modules)) if (path := f"{parent}.{i}") not in gone]
            moved |= {path: f"{parent}.{position}" for position, path in enumerate(left)}
    return moved


def path_after(path: str, moved: Moves) -> str | None:
    """Where a module or parameter is after blocks have moved up; None when its block is gone."""
    end = -1
    while end < len(path):
        end = path.find(".", end + 1)
        end = len(path) if end == -1 else end
        if path[:end] in moved:
            place = moved[path[:end]]
            return None if place is None else place + path[end:]
    return path


def _renamed(values: Mapping[str, Any], moved: Moves) -> dict[str, Any]:
    return {new: value for path, value in values.items() if (new := path_after(path, moved)) is not None}
