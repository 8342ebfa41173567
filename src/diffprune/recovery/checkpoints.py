"""Checkpoints of a training run: complete or absent, verified before they are loaded, the last few kept."""

import hashlib
import logging
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from diffprune.errors import FolderError
from diffprune.records import read_json, whole_folder, write_json

CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints below the stage's own."""

SUMS = "checksums.json"
"""File of a checkpoint, written last: SHA-256 of every other one."""

_log = logging.getLogger(__name__)


def save_checkpoint(accelerator: Accelerator, folder: Path, step: int, keep: int) -> None:
    """Save the state of all processes as `step-NNNNNNN`, which appears when everything is written.

    keep: how many of the newest stay. Raises FolderError where it cannot be written.
    """
    accelerator.wait_for_everyone()
    with whole_folder(folder / f"step-{step:07d}") if accelerator.is_main_process else nullcontext() as mine:
        message: list[Any] = [mine]
        broadcast_object_list(message)
        try:
            accelerator.save_state(str(message[0]))
        except RuntimeError as error:
            if "inline_container" not in str(error):  # torch's own, of a full disk
                raise
            raise FolderError(f"cannot write a checkpoint to {folder}; free space, the same command goes on") from error
        accelerator.wait_for_everyone()
        if mine is not None:
            write_json(mine / SUMS, {str(path.relative_to(mine)): _sha256(path) for path in _files(mine)})
    if accelerator.is_main_process:
        for old in sorted(folder.glob("step-*"))[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def load_newest(accelerator: Accelerator, folder: Path) -> bool:
    """Restore the newest checkpoint that is whole into everything prepared or registered; False without one.

    One that is not whole is left out, with a warning that names it. The number of processes may be another one than
    when it was saved.
    """
    message: list[Any] = [newest_whole(folder) if accelerator.is_main_process else None]
    broadcast_object_list(message)
    if message[0] is not None:
        accelerator.load_state(str(message[0]))
    return message[0] is not None


def newest_whole(folder: Path, last_step: int | None = None) -> Path | None:
    """The newest checkpoint, up to a step, whose files are what they were when they were written."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        if last_step is not None and int(path.name.removeprefix("step-")) > last_step:
            continue
        fault = fault_of(path)
        if fault is None:
            return path
        _log.warning("left out the checkpoint %s: %s; taking the one before, if any", path, fault)
    return None


def fault_of(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; None for one that is whole."""
    try:
        sums = read_json(checkpoint / SUMS)
    except (OSError, ValueError):
        sums = {}
    if not sums:
        return f"its {SUMS} is missing or damaged"
    for name, expected in sums.items():
        try:
            found = _sha256(checkpoint / name)
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if found != expected:
            return f"{name} has changed since it was written"
    return None


def keep_unwrapped(accelerator: Accelerator, bare: nn.Module) -> None:
    """Save and load the weights without what wraps the model for several processes, so that one process fits too."""

    def before_saving(models: list[nn.Module], weights: list[dict[str, torch.Tensor]], folder: str) -> None:
        weights[:] = [bare.state_dict()]

    def before_loading(models: list[nn.Module], folder: str) -> None:
        models[:] = [bare]

    accelerator.register_save_state_pre_hook(before_saving)
    accelerator.register_load_state_pre_hook(before_loading)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
