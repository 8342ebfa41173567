"""Files and folders that appear complete or not at all: write beside, fsync, rename."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from diffprune.errors import FolderError

PART = ".part"
"""Ending of files and folders that are being written; what a killed run left of them goes when it is resumed."""


_NO_SPACE = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


@contextmanager
def whole_file(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield an empty file beside `path` that takes its place only when the block succeeds.

    durable: on disk before it appears; False leaves that to an `os.sync` of the caller, who writes many files.
    """
    try:
        make_folders(path.parent)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
        beside = Path(name)
        os.close(descriptor)
        try:
            yield beside
            if durable:
                with beside.open("rb") as file:
                    os.fsync(file.fileno())
            os.chmod(beside, 0o666 & ~_umask())
            os.replace(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _cannot_write(path, error) from error


def write_whole(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Write a file so that it appears complete or not at all (write beside, fsync, rename); see `whole_file`."""
    with whole_file(path, durable=durable) as beside:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)


def remove_parts_of(path: Path) -> None:
    """Remove what killed runs left beside a file that they were writing; for stages that leave a single file."""
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    for part in [p for p in beside if p.name.startswith(f".{path.name}.") and p.suffix == PART]:
        part.unlink(missing_ok=True)


def check_replaceable(path: Path, mark: str) -> None:
    """Raise FolderError unless `path` is free, or a file that holds `mark` and so came from the same stage."""
    if not path.exists():
        return
    if not path.is_file() or mark.encode() not in path.read_bytes():
        raise FolderError(f"{path} exists and was not made by diffprune; choose another --out or remove it yourself")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object whole, indented."""
    write_whole(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises ValueError for anything else."""
    value = json.loads(path.read_text())
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, expected a JSON object")
    return value


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder` that takes its place only when the block succeeds."""
    beside: Path | None = None
    made: Sequence[Path] = ()
    try:
        made = make_folders(folder.parent)
        beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=PART))
        beside.chmod(0o777 & ~_umask())
        yield beside
        _fsync_tree(beside)
        if folder.exists():
            shutil.rmtree(folder)
        beside.rename(folder)
    except (OSError, SafetensorError) as error:
        raise _cannot_write(folder, error) from error
    finally:
        if beside is not None and beside.exists():
            shutil.rmtree(beside, ignore_errors=True)
        remove_empty(made)


def make_folders(folder: Path) -> list[Path]:
    """Create a folder and those above it; returns the ones that were missing, deepest first."""
    above = (folder, *folder.parents)
    blocking = next((path for path in above if path.exists() and not path.is_dir()), None)
    if blocking is not None:
        raise FolderError(f"cannot write below {blocking}: it is a file, expected a folder")
    missing = [path for path in above if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def remove_parts(folder: Path) -> None:
    """Remove unfinished files and folders that killed runs left below `folder`."""
    for part in [*folder.rglob(f".*{PART}")]:
        shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove those of the folders that are empty."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _cannot_write(path: Path, error: OSError | SafetensorError) -> FolderError:
    full = isinstance(error, SafetensorError) or error.errno in _NO_SPACE
    reason = getattr(error, "strerror", None) or error
    return FolderError(f"cannot write {path}: {reason}" + ("; free space or choose another place" if full else ""))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _fsync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
