"""The manifest `pruning.json`: widths and heads that differ from the stock config, and how they were pruned."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError
from torch import nn

from diffprune.architectures.families import MIRRORS
from diffprune.architectures.layouts import HEADS
from diffprune.architectures.rotary import has_rotary_tables_of_all_heads, kept_heads_of, slice_rotary_tables
from diffprune.artifact.slicing import (
    AXES,
    CONVOLUTIONS,
    WIDTH_ATTRIBUTES,
    WIDTHS,
    layer_type,
    linear_below,
    number,
    set_number,
    update_attention,
    width,
)
from diffprune.errors import ManifestError, ModelError
from diffprune.options import explain
from diffprune.runs.atomic_files import read_json

MANIFEST_NAME = "pruning.json"


class Manifest(BaseModel):
    """Widths, heads and norm groups of a pruned denoiser where they differ from its stock config.

    modules: module path -> attribute -> value, from 1 to the stock value.
    rotary_heads: path of an attention whose rotary tables hold all stock heads -> the stock heads that it kept.
    provenance: one entry per pruning, oldest first; facts in free form.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    class_name: str
    modules: dict[str, dict[str, StrictInt]]
    rotary_heads: dict[str, list[StrictInt]] = Field(default_factory=dict)
    provenance: list[dict[str, Any]] = Field(default_factory=list)

    def to_json(self) -> str:
        """Return the text of `pruning.json`."""
        return json.dumps(self.model_dump(), indent=1) + "\n"


def read_manifest(path: Path) -> Manifest:
    """Read and validate a `pruning.json`; raise ManifestError with all mistakes."""
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path} cannot be read: {error}") from error
    format_version = value.get("format_version")
    if not _is_int(format_version) or format_version != 1:
        raise ManifestError(
            f"{path} has format version {format_version!r}, this diffprune reads version 1; upgrade diffprune"
        )
    try:
        return Manifest.model_validate(value)
    except ValidationError as error:
        lines = "\n".join(explain(error, Manifest))
        raise ManifestError(f"{path} is not a pruning manifest:\n{lines}") from None


def manifest_of(model: nn.Module, stock: nn.Module, provenance: list[dict[str, Any]]) -> Manifest:
    """Return the differences of `model` from `stock`, a fresh model of the same config.

    Raises ModelError if the model has other layers than its config describes.
    """
    unexpected = sorted({path for path, _ in model.named_modules()} ^ {path for path, _ in stock.named_modules()})
    if unexpected:
        raise ModelError(
            f"{unexpected[0]} and {len(unexpected) - 1} more layers do not match the config of this "
            f"{type(model).__name__}, which could not load them. Save adapters with save_lora_adapter, or call "
            "fuse_lora() and unload_lora(); save before fuse_qkv_projections(); copy shared layers"
        )
    modules: dict[str, dict[str, int]] = {}
    for (path, module), stock_module in zip(model.named_modules(), stock.modules(), strict=True):
        changed = {
            name: value
            for name in sorted(WIDTH_ATTRIBUTES & vars(module).keys())
            if (value := number(module, name)) is not None and value != number(stock_module, name)
        }
        if changed:
            modules[path] = changed
    rotary = {path: list(kept) for path, module in model.named_modules() if (kept := kept_heads_of(module)) is not None}
    return Manifest(class_name=type(model).__name__, modules=modules, rotary_heads=rotary, provenance=provenance)


def apply_manifest(manifest: Manifest, model: nn.Module) -> None:
    """Resize a stock `model` in place to the widths of the manifest; resized weights are not initialized.

    Raises ManifestError, before any change, with every path, attribute and size that does not fit the model.
    """
    mistakes = _width_mistakes(manifest.modules, model) or list(_rotary_mistakes(manifest, model))
    if manifest.class_name not in {kind.__name__ for kind in type(model).__mro__}:
        mistakes.insert(0, f"the manifest is for a {manifest.class_name}, the config for a {type(model).__name__}")
    if mistakes:
        shown = "\n".join(f"  {m}" for m in mistakes[:10])
        more = f"\n  ... and {len(mistakes) - 10} more" if len(mistakes) > 10 else ""
        raise ManifestError(f"the manifest does not fit the model's config.json:\n{shown}{more}")
    for path, changes in manifest.modules.items():
        module = model.get_submodule(path)
        for name, value in changes.items():
            set_number(module, name, value)
        kind = layer_type(module)
        if kind is not None:
            _allocate(module, kind)
    for path, heads in manifest.rotary_heads.items():
        slice_rotary_tables(model.get_submodule(path), heads)
    update_attention(model)


def _rotary_mistakes(manifest: Manifest, model: nn.Module) -> Iterator[str]:
    known = dict(model.named_modules())
    for path, changes in manifest.modules.items():
        if "heads" in changes and path not in manifest.rotary_heads and has_rotary_tables_of_all_heads(known[path]):
            yield f"{path}: its rotary tables hold all stock heads; rotary_heads must list the heads it kept"
    for path, heads in manifest.rotary_heads.items():
        module = known.get(path)
        if module is None or not has_rotary_tables_of_all_heads(module):
            yield f"{path}: not an attention with rotary tables of all stock heads"
            continue
        stock = number(module, "heads") or 0
        num_heads = manifest.modules.get(path, {}).get("heads", stock)
        if heads != sorted(set(heads)) or len(heads) != num_heads or not all(0 <= head < stock for head in heads):
            yield f"{path}: got rotary heads {heads}, expected {num_heads} of 0 to {stock - 1}, ascending"


def _width_mistakes(modules: Mapping[str, Mapping[str, int]], model: nn.Module) -> list[str]:
    mistakes = []
    known = dict(model.named_modules())
    for path, changes in modules.items():
        if path not in known:
            mistakes.append(f"{path}: no such module")
            continue
        module = known[path]
        for name, value in changes.items():
            stock = number(module, name)
            if name not in WIDTH_ATTRIBUTES or stock is None:
                mistakes.append(f"{path}.{name}: not a width of a {type(module).__name__}")
            elif not 1 <= value <= stock:
                mistakes.append(f"{path}.{name}: got {value}, expected 1 to {stock} (the stock width)")
        channels = changes.get("num_channels", getattr(module, "num_channels", None))
        groups = changes.get("num_groups", getattr(module, "num_groups", None))
        if isinstance(module, nn.GroupNorm) and groups and channels and channels % groups:
            mistakes.append(f"{path}: {channels} channels cannot be divided into {groups} equal norm groups")
    return mistakes or [mistake for path in known for mistake in _disagreements(path, known, modules)]


def _disagreements(
    path: str, known: Mapping[str, nn.Module], modules: Mapping[str, Mapping[str, int]]
) -> Iterator[str]:
    """Yield the attributes of a module that repeat a layer's width in the stock model, but not after the changes."""
    module = known[path]
    for attribute, (below, dim) in MIRRORS.get(type(module).__name__, {}).items():
        layer = known.get(f"{path}.{below}")
        kind = None if layer is None else layer_type(layer)
        if layer is None or kind is None or number(module, attribute) != width(layer, dim):
            continue
        mirrored = modules.get(path, {}).get(attribute, width(layer, dim))
        actual = modules.get(f"{path}.{below}", {}).get(WIDTHS[kind][dim], width(layer, dim))
        if mirrored != actual:
            yield f"{path}.{attribute}: got {mirrored}, expected {actual} (the width of {below})"
    queries = linear_below(module, "to_q")
    for attribute in HEADS if queries is not None else ():
        stock_heads = number(module, attribute) or 1
        if queries is not None and stock_heads > 1 and queries.out_features % stock_heads == 0:
            rows = modules.get(f"{path}.to_q", {}).get("out_features", queries.out_features)
            heads = modules.get(path, {}).get(attribute, stock_heads)
            if rows % heads:
                yield f"{path}.{attribute}: got {heads} heads; the {rows} rows of to_q are not a multiple of {heads}"


def _allocate(module: nn.Module, kind: type[nn.Module]) -> None:
    for name, axes in AXES[kind].items():
        parameter = getattr(module, name, None)
        if parameter is None:
            continue
        shape = list(parameter.shape)
        for dim, axis in axes.items():
            shape[axis] = width(module, dim)
            if dim == "in" and isinstance(module, CONVOLUTIONS):
                shape[axis] //= module.groups
        smaller = torch.empty(shape, dtype=parameter.dtype, device=parameter.device)
        setattr(module, name, nn.Parameter(smaller, requires_grad=parameter.requires_grad))


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
