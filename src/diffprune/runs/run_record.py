"""The `run.json` of a stage's output folder: when the stage runs, resumes, keeps or replaces a result."""

import hashlib
import json
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from diffprune.errors import FolderError
from diffprune.runs.atomic_files import (
    PARTIAL_SUFFIX,
    atomic_folder,
    make_folders,
    read_json,
    remove_empty_folders,
    remove_partials,
    write_json,
)
from diffprune.runs.environment import environment, peak_memory_mb
from diffprune.runs.progress import notify

RECORD_NAME = "run.json"

LARGE_BYTES = 64_000_000
"""Files above this size are identified by size and modification time, not by content."""

Inputs = dict[str, dict[str, str | None]]
"""Name of an input -> `source` (as given) and `identity` (see `identity`)."""

Existing = Literal["refuse", "replace", "redo"]
"""What to do with an existing result, see `run_record`."""


@dataclass
class Run:
    """A running stage and its output folder; `result` goes into `run.json` when the stage ends.

    finished_before: the folder already holds the finished result of the same options and inputs.
    inputs: name of each input -> its `source` and its `identity`, hashed once; the key of caches in the folder.
    restored: set by a stage that writes missing files of a finished result again.
    """

    folder: Path
    finished_before: bool
    result: dict[str, Any] = field(default_factory=dict)
    inputs: Inputs = field(default_factory=dict)
    restored: bool = False


def identity(source: str | None) -> str | None:
    """Return a hash that identifies the content of an input; None if it is not a local file or folder.

    A stage's output folder is identified by its `run.json`, a file up to 64 MB by its bytes. Larger files and other
    folders are identified by names, sizes and modification times.
    """
    if source is None or not Path(source).exists():
        return None
    path = Path(source)
    if path.is_dir() and not (path / RECORD_NAME).is_file():
        return _hash_of_stats([p for p in sorted(path.rglob("*")) if p.is_file()], path)
    file = path / RECORD_NAME if path.is_dir() else path
    if file.stat().st_size > LARGE_BYTES:
        return _hash_of_stats([file], file.parent)
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def identified(inputs: Mapping[str, str | None]) -> Inputs:
    """Return the inputs with the identity of each."""
    return {
        name: {"source": None if source is None else str(source), "identity": identity(source)}
        for name, source in inputs.items()
    }


def _hash_of_stats(files: Sequence[Path], root: Path) -> str:
    stats = [[str(p.relative_to(root)), p.stat().st_size, p.stat().st_mtime_ns] for p in files]
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()[:16]


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
    """Run a stage that writes into `Run.folder`, and write its `run.json`.

    resumable: the stage works in `folder` itself and continues an interrupted run of the same options and inputs.
    Its `run.json` says "running" until the end. If it fails before it wrote any file, the folder is removed.
    A stage that is not resumable works in a temporary folder that becomes `folder` when the stage succeeds.

    existing: a finished result of the same options and inputs is kept, except with "redo". A result of other options
    or inputs is an error, except with "replace" and "redo". The old result is removed when the new run has succeeded.
    neutral: options that do not change the result.
    Raises FolderError if diffprune did not make `folder`, if its result may not be replaced, or if `folder` contains
    one of the inputs.
    """
    request = {
        "options": _as_json(options),
        "inputs": identified(inputs),
    }
    before = _existing_record(folder, stage)
    _check_inputs_outside(folder, inputs)
    same = before is not None and not differences(before, request, neutral)
    finished = before is not None and before.get("status") == "finished"
    if before is not None and same and finished and existing != "redo":
        run = Run(folder, finished_before=True, result=before["result"], inputs=request["inputs"])
        yield run
        notify(f"{folder} was completed" if run.restored else f"{folder} is finished; nothing to do")
        return
    if before is not None and not same and existing == "refuse":
        raise FolderError(
            f"{folder} holds a {before.get('status', 'damaged')} `diffprune {stage}` with other options or inputs "
            f"({differences(before, request, neutral)}); add --overwrite to replace it, or choose another --out"
        )
    head = {"stage": stage, "status": "running", **request, **environment()}
    started = time.monotonic()
    if resumable:
        with _resumable_folder(folder, head, keep_files=same and not finished):
            run = Run(folder, finished_before=False, inputs=request["inputs"])
            yield run
        _finish(run, head, started)
        shutil.rmtree(_replaced_path(folder), ignore_errors=True)
    else:
        with atomic_folder(folder) as temporary:
            run = Run(temporary, finished_before=False, inputs=request["inputs"])
            yield run
            _finish(run, head, started)
    notify(f"result written to {folder}")


@contextmanager
def _resumable_folder(folder: Path, head: Mapping[str, Any], *, keep_files: bool) -> Iterator[None]:
    """Prepare the folder of a resumable stage; if the stage fails, restore the result that it was to replace."""
    replaced = _move_replaced(folder) if folder.exists() and not keep_files else None
    created = make_folders(folder)
    remove_partials(folder)
    write_json(folder / RECORD_NAME, head)
    try:
        yield
    except Exception:
        if replaced is not None:
            shutil.rmtree(folder)
            replaced.rename(folder)
        elif [path for path in folder.rglob("*") if path.is_file()] == [folder / RECORD_NAME]:
            shutil.rmtree(folder)
            folder.mkdir()
            remove_empty_folders(created)
        raise


def _finish(run: Run, head: Mapping[str, Any], started: float) -> None:
    tail = {
        "status": "finished",
        "wall_time_s": round(time.monotonic() - started, 3),
        "peak_memory_mb": peak_memory_mb(),
        "result": run.result,
    }
    write_json(run.folder / RECORD_NAME, {**head, **tail})


def _existing_record(folder: Path, stage: str) -> dict[str, Any] | None:
    """Return the `run.json` of an earlier run of this stage; None if the folder is missing or empty."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if not folder.is_dir():
        raise FolderError(f"{folder} is a file, expected a folder to write to; choose another --out")
    try:
        record = read_json(folder / RECORD_NAME)
    except (OSError, ValueError):
        record = {}
    parts = ("options", "inputs", "result") if record.get("status") == "finished" else ("options", "inputs")
    if record.get("stage") != stage or not all(isinstance(record.get(part), dict) for part in parts):
        raise FolderError(
            f"{folder} exists and was not made by `diffprune {stage}`, or its {RECORD_NAME} is damaged. "
            "Nothing was changed: choose another --out, or remove the folder yourself"
        )
    return record


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _replaced_path(folder: Path) -> Path:
    return folder.absolute().with_name(f".{folder.absolute().name}.replaced{PARTIAL_SUFFIX}")


def _move_replaced(folder: Path) -> Path:
    """Rename a result that is to be replaced; it is kept until the new one is complete."""
    replaced = _replaced_path(folder)
    shutil.rmtree(replaced, ignore_errors=True)
    folder.rename(replaced)
    return replaced


def _check_inputs_outside(folder: Path, inputs: Mapping[str, str | None]) -> None:
    output = folder.resolve()
    for name, source in inputs.items():
        if source is None or not Path(source).exists():
            continue
        path = Path(source).resolve()
        if path == output or output in path.parents:
            raise FolderError(f"{name}: {source} is inside the output folder {folder}; choose another --out")


def differences(before: Mapping[str, Any], after: Mapping[str, Any], neutral: Collection[str] = ()) -> str:
    """Return the options and inputs whose values differ, as text; empty if there are none.

    before, after: mappings with the parts `options` and `inputs`.
    neutral: options that do not count.
    """
    changes = []
    for part in ("options", "inputs"):
        old_values, new_values = before.get(part) or {}, after[part]
        for name in {**old_values, **new_values}:
            old, new = old_values.get(name), new_values.get(name)
            if old == new or (part == "options" and name in neutral):
                continue
            if part == "inputs":
                old, new = ((entry or {}).get("source") or "none" for entry in (old, new))
            old, new = ("the default" if value is None else value for value in (old, new))
            changes.append(f"{name}: was {old}, is {new}" if old != new else f"{name}: {new} has changed since")
    return ", ".join(changes)
