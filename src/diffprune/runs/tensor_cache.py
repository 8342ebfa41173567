"""Tensors and facts that a stage keeps while it works: written whole, verified when they are found again."""

import hashlib
import json
import logging
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffprune.runs.atomic_files import whole_file

CacheEntry = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors by name, on the CPU, and facts as JSON types."""

_log = logging.getLogger(__name__)


def partial_folder(path: Path) -> Path:
    """The folder of what a stage keeps that leaves a single file; it goes when the file is there."""
    return path.with_name(f"{path.name}.partial")


def write_cache(path: Path, content: CacheEntry, made_from: Mapping[str, Any]) -> None:
    """Write tensors and facts. made_from: what they depend on beside the version, as JSON types."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in content[0].items()}
    facts = json.dumps(content[1])
    metadata = {"made_from": _hash(made_from), "facts": facts, "digest": _digest(tensors, facts)}
    with whole_file(path) as beside:
        save_file(tensors, beside, metadata)


def read_cache(path: Path, made_from: Mapping[str, Any]) -> CacheEntry | None:
    """What was written; None where there is nothing, with a warning where it is damaged or made from something else."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata["made_from"] != _hash(made_from):
            raise ValueError("it was made from other inputs or by another version")
        if metadata["digest"] != _digest(tensors, metadata["facts"]):
            raise ValueError("its values are not those that were written")
        return tensors, json.loads(metadata["facts"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        _log.warning("%s is made again: %s", path, error)
        return None


def _hash(made_from: Mapping[str, Any]) -> str:
    whole = json.dumps({"version": version("diffprune"), **made_from}, sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()


def _digest(tensors: Mapping[str, Tensor], facts: str) -> str:
    digest = hashlib.sha256(facts.encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
