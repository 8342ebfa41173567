"""What a stage leaves on disk: whole files, and folders that say in `run.json` how they came about."""

import errno
import hashlib
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError

from diffprune.errors import FolderError

RECORD_NAME = "run.json"
PART = ".part"
"""Ending of files and folders that are being written; what a killed run left of them goes when it is resumed."""

LARGE_BYTES = 64_000_000
Existing = Literal["refuse", "replace", "redo"]
"""What to do with a result that is there already, see `run_record`."""

_NO_SPACE = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_PACKAGES = ("diffprune", "torch", "diffusers", "torch-pruning", "accelerate", "safetensors")


@dataclass
class Run:
    """A stage at work on its folder; `result` goes into `run.json` when the stage ends.

    `finished_before` is True when the folder already holds the finished result of the same options.
    """

    folder: Path
    finished_before: bool
    result: dict[str, Any] = field(default_factory=dict)


@contextmanager
def whole_file(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield an empty file beside `path` that takes its place only when the block succeeds.

    durable: on disk before it appears; False leaves that to an `os.sync` of the caller, who writes many files.
    """
    try:
        _make_folders(path.parent)
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
        made = _make_folders(folder.parent)
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
        _remove_empty(made)


def identity(source: str | None) -> str | None:
    """What an input is by content, as a hash; None for what is not a file or folder here.

    Of a stage's folder: its `run.json`. Of any other folder, and of files over 64 MB: names, sizes and times of last
    change. Of a smaller file: its bytes.
    """
    if source is None or not Path(source).exists():
        return None
    path = Path(source)
    if path.is_dir() and not (path / RECORD_NAME).is_file():
        return _hash_of_files([p for p in sorted(path.rglob("*")) if p.is_file()], path)
    file = path / RECORD_NAME if path.is_dir() else path
    if file.stat().st_size > LARGE_BYTES:
        return _hash_of_files([file], file.parent)
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def _hash_of_files(files: Sequence[Path], root: Path) -> str:
    facts = [[str(p.relative_to(root)), p.stat().st_size, p.stat().st_mtime_ns] for p in files]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


@contextmanager
def run_record(
    folder: Path,
    stage: str,
    options: Mapping[str, Any],
    inputs: Mapping[str, str | None],
    *,
    existing: Existing = "refuse",
    neutral: Collection[str] = (),
    resumable: bool = False,
) -> Iterator[Run]:
    """Hold the `run.json` of a stage that writes into `Run.folder`.

    A resumable stage works in `folder` itself, finds there what an interrupted run of the same options and
    inputs left, and its `run.json` says "running" until the end; when it fails before it has left anything else,
    the folder goes. Any other stage works beside `folder`, which appears only when the stage has succeeded.

    existing: a finished result of the same options and inputs is kept, unless this says "redo"; one of other options
    or inputs is refused, unless this says "redo" or "replace". What is replaced goes only when the new run has
    succeeded. neutral: options that do not change the result.
    Raises FolderError when the folder is not ours, is refused as said, or holds one of the inputs.
    """
    given = {
        "options": _as_json(options),
        "inputs": {name: {"source": source, "identity": identity(source)} for name, source in inputs.items()},
    }
    before = _record_there(folder, stage)
    _check_inputs_outside(folder, inputs)
    same = before is not None and not _differences(before, given, neutral)
    finished = before is not None and before.get("status") == "finished"
    if before is not None and same and finished and existing != "redo":
        yield Run(folder, finished_before=True, result=before["result"])
        return
    if before is not None and not same and existing == "refuse":
        raise FolderError(
            f"{folder} holds a {before.get('status', 'broken')} `diffprune {stage}` made otherwise "
            f"({_differences(before, given, neutral)}); add --overwrite to replace it or choose another --out"
        )
    head = {"stage": stage, "status": "running", **given, **environment()}
    started = time.monotonic()

    def finish(run: Run) -> None:
        tail = {
            "status": "finished",
            "wall_time_s": round(time.monotonic() - started, 3),
            "peak_memory_mb": peak_memory_mb(),
            "result": run.result,
        }
        write_json(run.folder / RECORD_NAME, {**head, **tail})

    if resumable:
        aside = _put_aside(folder) if folder.exists() and (finished or not same) else None
        made = _make_folders(folder)
        _remove_parts(folder)
        write_json(folder / RECORD_NAME, head)
        run = Run(folder, finished_before=False)
        try:
            yield run
        except Exception:
            if aside is not None:
                shutil.rmtree(folder)
                aside.rename(folder)
            elif [path for path in folder.rglob("*") if path.is_file()] == [folder / RECORD_NAME]:
                shutil.rmtree(folder)
                folder.mkdir()
                _remove_empty(made)
            raise
        finish(run)
        shutil.rmtree(_aside(folder), ignore_errors=True)
    else:
        with whole_folder(folder) as beside:
            run = Run(beside, finished_before=False)
            yield run
            finish(run)


def environment() -> dict[str, Any]:
    """Versions, platform, git commit of the working folder and start time, for `run.json`."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": {"python": platform.python_version(), **_versions()},
        "platform": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "git_commit": _git_commit(),
    }


def peak_memory_mb() -> int:
    """Peak resident memory of this process so far, in MB."""
    status = Path("/proc/self/status")
    own = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE) if status.is_file() else None
    if own is not None:  # on Linux ru_maxrss counts what a parent held when it started this process
        return int(int(own[1]) * 1024 / 1e6)
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _git_commit() -> str | None:
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _record_there(folder: Path, stage: str) -> dict[str, Any] | None:
    """The `run.json` of an earlier run of this stage; None where the folder is free to use."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if not folder.is_dir():
        raise FolderError(f"{folder} is a file, expected a folder to write to")
    try:
        record = read_json(folder / RECORD_NAME)
    except (OSError, ValueError):
        record = {}
    parts = ("options", "inputs", "result") if record.get("status") == "finished" else ("options", "inputs")
    if record.get("stage") != stage or not all(isinstance(record.get(part), dict) for part in parts):
        raise FolderError(
            f"{folder} exists and was not made by `diffprune {stage}` (or its {RECORD_NAME} is damaged); "
            "nothing was changed: choose another --out or remove the folder yourself"
        )
    return record


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _aside(folder: Path) -> Path:
    return folder.absolute().with_name(f".{folder.absolute().name}.replaced{PART}")


def _put_aside(folder: Path) -> Path:
    """Move a result that is to be replaced out of the way; it stays until the new one is there."""
    aside = _aside(folder)
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    return aside


def _check_inputs_outside(folder: Path, inputs: Mapping[str, str | None]) -> None:
    for name, source in inputs.items():
        if source is None or not Path(source).exists():
            continue
        place, here = Path(source).resolve(), folder.resolve()
        if place == here or here in place.parents:
            raise FolderError(f"{name}: {source} lies in the folder to write, {folder}; choose another --out")


def _differences(before: Mapping[str, Any], after: Mapping[str, Any], neutral: Collection[str]) -> str:
    found = []
    for part in ("options", "inputs"):
        old, new = before.get(part) or {}, after[part]
        for name in {**old, **new}:
            there, now = old.get(name), new.get(name)
            if there == now or (part == "options" and name in neutral):
                continue
            if part == "inputs":
                there, now = ((entry or {}).get("source") for entry in (there, now))
            found.append(f"{name}: {there} there, {now} now" if there != now else f"{name}: {now} has changed since")
    return ", ".join(found)


def _make_folders(folder: Path) -> list[Path]:
    """Create a folder and those above it; returns the ones that were missing, deepest first."""
    above = (folder, *folder.parents)
    blocking = next((path for path in above if path.exists() and not path.is_dir()), None)
    if blocking is not None:
        raise FolderError(f"cannot write below {blocking}: it is a file, expected a folder")
    missing = [path for path in above if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_parts(folder: Path) -> None:
    for part in [*folder.rglob(f".*{PART}")]:
        shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)


def _remove_empty(folders: Sequence[Path]) -> None:
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
