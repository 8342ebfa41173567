"""Read a checkpoint file without executing code in it: torch's restricted unpickler, with inert stand-in classes."""

import re
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from diffprune.errors import ModelError

_REFUSED = re.compile(r"Unsupported global: GLOBAL (\S+) was not an allowed global")
_BLOCKED = re.compile(r"unsupported GLOBAL (\S+) whose module \S+ is blocked")
_CALLED = re.compile(r"unrecognized function <\S+\.Inert_\w+ object")
_FILLED = re.compile(r"Can only (SETITEMS?|append|extend)\b.*'([^']+)'>", re.DOTALL)
_LARGEST_HEADER = 100_000_000
"""Bytes; the limit of safetensors itself."""


class _Inert:
    """Stand-in for a class or function named in a file: accepts any arguments, stores nothing, does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _InertDict(_Inert):
    """Stand-in for a class whose objects are load_exactly like dicts: creates a plain OrderedDict."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return OrderedDict()


class _InertList(_Inert):
    """Stand-in for a class whose objects are load_exactly like lists: creates a plain list."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return []


@dataclass(frozen=True)
class Checkpoint:
    """Content of a checkpoint file.

    content: tensors in the containers of the file; an object of any other class is an inert stand-in.
    foreign: full names of the classes and functions that the file names and that stand-ins replaced.
    """

    content: Any
    foreign: tuple[str, ...]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a safetensors file, or a file of `torch.save` (zip or legacy format), onto the CPU.

    Pickles are read with `weights_only=True`: the classes and functions they name are neither imported nor called.
    Raises ModelError if the file is missing, damaged, or not a checkpoint.
    """
    if not path.is_file():
        raise ModelError(
            f"no file {path}; expected a checkpoint, written by torch.save (.pt, .pth, .ckpt) or in safetensors format"
        )
    if _is_safetensors(path):
        try:
            return Checkpoint(load_file(path), ())
        except (SafetensorError, OSError) as error:
            raise ModelError(f"cannot read {path}: {error}. It is damaged or truncated: download it again") from error
    return _read_pickle(path)


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(9)
    return path.suffix == ".safetensors" or (
        len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") <= _LARGEST_HEADER
    )


def _read_pickle(path: Path) -> Checkpoint:
    stand_ins: dict[str, type[_Inert]] = {}
    mapped = zipfile.is_zipfile(path)  # the legacy format cannot be memory-mapped
    while True:
        replaced: list[Any] = [(kind, name) for name, kind in stand_ins.items()]
        try:
            with torch.serialization.safe_globals(replaced):
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except Exception as error:  # a damaged file fails in the unpickler, in torch, or in a class that it names
            added = _stand_ins_for(str(error), stand_ins)
            if not added:
                raise _unreadable(path, error) from error
            stand_ins |= added
        else:
            return Checkpoint(content, tuple(sorted(_names(stand_ins))))


def _stand_ins_for(message: str, present: dict[str, type[_Inert]]) -> dict[str, type[_Inert]]:
    """Return the stand-ins that resolve an error of torch's unpickler; empty if none would."""
    refused = _REFUSED.search(message)
    if refused is not None:
        name = refused[1]
        kinds = {full: _named(_Inert, full) for full in (name, f"builtins.{name}")}  # torch omits `builtins.`
        return {} if name in present else kinds
    load_exactly = _FILLED.search(message)
    if load_exactly is None:
        return {}
    base = _InertDict if load_exactly[1].startswith("SETITEM") else _InertList
    return {
        full: _named(base, full)
        for full, kind in present.items()
        if not issubclass(kind, _InertDict | _InertList) and load_exactly[2] == f"{kind.__module__}.{kind.__qualname__}"
    }


def _named(base: type[_Inert], full_name: str) -> type[_Inert]:
    """Create a stand-in class per name, so that error messages identify it."""
    return type("Inert_" + re.sub(r"\W", "_", full_name), (base,), {"__module__": __name__})


def _names(stand_ins: dict[str, type[_Inert]]) -> set[str]:
    bare = {name.removeprefix("builtins.") for name in stand_ins if name.startswith("builtins.")}
    return {name if "." in name else f"builtins.{name}" for name in bare}


def _unreadable(path: Path, error: Exception) -> ModelError:
    blocked = _BLOCKED.search(str(error))
    if blocked is not None or _CALLED.search(str(error)):
        action = f"use {blocked[1]}" if blocked is not None else "call an object that it creates"
        return ModelError(
            f"{path} wants to {action}, which no weights need: the file may be malicious. It was not loaded and "
            "nothing in it was executed; download the checkpoint from its authors"
        )
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].removeprefix("Weights only load failed. ")
    inner = str(error).partition("WeightsUnpickler error:")[2].strip().splitlines()
    return ModelError(
        f"cannot read {path} as a checkpoint ({inner[0] if inner else reason}). Expected a file written by torch.save "
        "or in safetensors format; if it is one, it is damaged or truncated: download it again"
    )
