"""What a stage leaves on disk: whole files, and folders that say in `run.json` how they came about."""

import hashlib
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from diffprune.errors import FolderError
from diffprune.runs.atomic_files import (
    PART,
    make_folders,
    read_json,
    remove_empty,
    remove_parts,
    whole_folder,
    write_json,
)

RECORD_NAME = "run.json"

LARGE_BYTES = 64_000_000
Existing = Literal["refuse", "replace", "redo"]
"""What to do with a result that is there already, see `run_record`."""

_PACKAGES = ("diffprune", "torch", "diffusers", "torch-pruning", "accelerate", "safetensors")


@dataclass
class Run:
    """A stage at work on its folder; `result` goes into `run.json` when the stage ends.

    `finished_before` is True when the folder already holds the finished result of the same options.
    """

    folder: Path
    finished_before: bool
    result: dict[str, Any] = field(default_factory=dict)


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
        made = make_folders(folder)
        remove_parts(folder)
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
                remove_empty(made)
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
