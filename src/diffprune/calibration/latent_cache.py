"""On-disk cache of latents and conditioning, batch by batch, so that an interrupted stage resumes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffprune.errors import ModelError
from diffprune.pipelines.denoiser_interface import Convention, Interface
from diffprune.runs.tensor_cache import read_cache, write_cache

LATENTS = "latents"
"""Subfolder of the cached batches; removed when the stage has finished."""


@dataclass(frozen=True)
class LatentBatch:
    """A batch of clean latents (N, ...) with its conditioning, on the CPU."""

    clean: Tensor
    condition: Mapping[str, Any]
    interface: Interface


@dataclass(frozen=True)
class LatentCache:
    """A folder of batches, one file each. key: inputs and options of all batches, as JSON types."""

    folder: Path
    key: Mapping[str, Any]

    def load(self, name: str, key: Mapping[str, Any]) -> LatentBatch | None:
        """Return the batch of this name and key; None if it is missing or damaged."""
        entry = read_cache(self._file(name), {**self.key, **key})
        if entry is None:
            return None
        tensors, packed = entry
        return _unpacked(packed, tensors)

    def save(self, name: str, key: Mapping[str, Any], batch: LatentBatch) -> None:
        """Write a batch atomically. Raises ModelError for conditioning that cannot be stored."""
        tensors: dict[str, Tensor] = {}
        interface = batch.interface
        packed = {
            "clean": _packed(batch.clean, tensors),
            "condition": _packed(dict(batch.condition), tensors),
            "is_rows": list(interface.is_rows),
            "convention": vars(interface.convention),
            "shape": list(interface.shape),
            "joined": interface.joined,
        }
        write_cache(self._file(name), (tensors, packed), {**self.key, **key})

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return a value as JSON types; its tensors are added to `tensors` by name."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": {name: _packed(part, tensors) for name, part in value.items()}}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_packed(part, tensors) for part in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise ModelError(f"conditioning with a {type(value).__name__} cannot be cached and is not supported")


def _value(packed: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    """Return the value that `_packed` has turned into JSON types."""
    ((kind, value),) = packed.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {name: _value(part, tensors) for name, part in value.items()}
    if kind == "value":
        return value
    parts = [_value(part, tensors) for part in value]
    return parts if kind == "list" else tuple(parts)


def _unpacked(packed: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LatentBatch:
    convention = Convention(**packed["convention"])
    interface = Interface(tuple(packed["is_rows"]), convention, torch.Size(packed["shape"]), packed["joined"])
    return LatentBatch(_value(packed["clean"], tensors), _value(packed["condition"], tensors), interface)
