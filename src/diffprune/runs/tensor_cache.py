"""Checksummed on-disk cache of a stage's intermediate tensors."""

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

from diffprune.runs.atomic_files import atomic_file

CacheEntry = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors by name, on the CPU, and facts as JSON types."""

_log = logging.getLogger(__name__)


def partial_folder(path: Path) -> Path:
    """Return the cache folder of a stage whose result is the single file `path`; the stage removes it at its end."""
    return path.with_name(f"{path.name}.partial")


def write_cache(path: Path, content: CacheEntry, key: Mapping[str, Any]) -> None:
    """Write tensors and facts atomically. key: what they depend on, as JSON types; the version is added to it."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in content[0].items()}
    facts = json.dumps(content[1])
    metadata = {"key": _key_hash(key), "facts": facts, "digest": tensors_digest(tensors, facts)}
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata)


def read_cache(path: Path, key: Mapping[str, Any]) -> CacheEntry | None:
    """Read and verify a cache file; return None if it is missing, and None with a warning if it is not valid."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata["key"] != _key_hash(key):
            raise ValueError("it belongs to other inputs or to another version of diffprune")
        if metadata["digest"] != tensors_digest(tensors, metadata["facts"]):
            raise ValueError("its checksum does not match its content")
        return tensors, json.loads(metadata["facts"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        _log.warning("cannot use the cache %s, recomputing it: %s", path, error)
        return None


def _key_hash(key: Mapping[str, Any]) -> str:
    text = json.dumps({"version": version("diffprune"), **key}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def tensors_digest(tensors: Mapping[str, Tensor], facts: str = "") -> str:
    """Return the SHA-256 of facts and of the names, dtypes, shapes and values of tensors, in hexadecimal."""
    digest = hashlib.sha256(facts.encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
