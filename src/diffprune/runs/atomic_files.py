"""Files and folders that appear complete or not at all: write a temporary neighbor, fsync, rename."""

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

PARTIAL_SUFFIX = ".part"
"""Suffix of files and folders that are being written; a resumed run removes those of a killed run."""


_NO_SPACE = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


@contextmanager
def atomic_file(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield an empty temporary file that replaces `path` if the block succeeds and is removed if it fails.

    durable: fsync before the rename; False leaves that to an `os.sync` of the caller, who writes many files.
    Raises FolderError if the file cannot be written.
    """
    try:
        make_folders(path.parent)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL_SUFFIX)
        temporary = Path(name)
        os.close(descriptor)
        try:
            yield temporary
            if durable:
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _cannot_write(path, error) from error


def atomic_write(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Write a file by `atomic_file`."""
    with atomic_file(path, durable=durable) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def remove_partials_of(path: Path) -> None:
    """Remove the temporary files that killed runs left while they wrote the file `path`."""
    siblings = path.parent.iterdir() if path.parent.is_dir() else ()
    for part in [p for p in siblings if p.name.startswith(f".{path.name}.") and p.suffix == PARTIAL_SUFFIX]:
        part.unlink(missing_ok=True)


def check_replaceable(path: Path, mark: str) -> None:
    """Raise FolderError if `path` exists, unless it is a file that contains `mark` and so came from the same stage."""
    if not path.exists():
        return
    if not path.is_file() or mark.encode() not in path.read_bytes():
        raise FolderError(f"{path} exists and was not made by diffprune; choose another --out or remove it yourself")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, indented by 2."""
    atomic_write(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raise ValueError for any other JSON value and for invalid JSON."""
    value = json.loads(path.read_text())
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, expected a JSON object")
    return value


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty temporary folder that replaces `folder` if the block succeeds and is removed if it fails.

    Raises FolderError if the folder cannot be written.
    """
    temporary: Path | None = None
    created: Sequence[Path] = ()
    try:
        created = make_folders(folder.parent)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=PARTIAL_SUFFIX))
        temporary.chmod(0o777 & ~_umask())
        yield temporary
        _fsync_tree(temporary)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except (OSError, SafetensorError) as error:
        raise _cannot_write(folder, error) from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)
        remove_empty_folders(created)


def make_folders(folder: Path) -> list[Path]:
    """Create a folder and its parents; return the created ones, deepest first. Raises FolderError for a file."""
    parents = (folder, *folder.parents)
    blocking = next((path for path in parents if path.exists() and not path.is_dir()), None)
    if blocking is not None:
        raise FolderError(f"cannot write below {blocking}: it is a file, expected a folder")
    missing = [path for path in parents if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def remove_partials(folder: Path) -> None:
    """Remove the temporary files and folders that killed runs left anywhere below `folder`."""
    for part in [*folder.rglob(f".*{PARTIAL_SUFFIX}")]:
        shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)


def remove_empty_folders(folders: Sequence[Path]) -> None:
    """Remove each folder that is empty."""
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
