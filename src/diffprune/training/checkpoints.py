"""Checkpoints of a training run: complete or absent, verified before they are loaded, the last few kept."""

import hashlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.fsdp import StateDictType

from diffprune.errors import FolderError
from diffprune.runs.atomic_files import atomic_folder, read_json, write_json

CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints below the stage's own."""

SUMS = "checksums.json"
"""File of a checkpoint, written last: SHA-256 of every other one."""

WEIGHTS = {
    "model.safetensors": "without FSDP",
    "pytorch_model_fsdp_0": "under FSDP, in shards",
    "pytorch_model_fsdp.bin": "under FSDP, with FULL_STATE_DICT",
}
"""What accelerate calls the weights in a checkpoint, and how a training that does so was launched."""

_log = logging.getLogger(__name__)


def save_checkpoint(accelerator: Accelerator, folder: Path, step: int, keep: int) -> None:
    """Save the state of all processes as `step-NNNNNNN`, which appears when everything is written.

    keep: how many of the newest stay. Raises FolderError where it cannot be written.
    """
    accelerator.wait_for_everyone()
    with atomic_folder(folder / f"step-{step:07d}") if accelerator.is_main_process else nullcontext() as mine:
        message: list[Any] = [mine]
        broadcast_object_list(message)
        try:
            accelerator.save_state(str(message[0]))
        except (RuntimeError, CheckpointException) as error:  # of whole files, and of shards, which says no more
            if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # torch's own, of a full disk
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
    when it was saved. Raises FolderError for one whose weights are sharded where they were not, or the other way round.
    """
    message: list[Any] = [newest_whole(folder) if accelerator.is_main_process else None]
    broadcast_object_list(message)
    if message[0] is not None:
        _check_weights(accelerator, Path(message[0]))
        accelerator.load_state(str(message[0]))
    return message[0] is not None


def _check_weights(accelerator: Accelerator, checkpoint: Path) -> None:
    expected = "model.safetensors"
    if accelerator.is_fsdp2:
        in_shards = accelerator.state.fsdp_plugin.state_dict_type == StateDictType.SHARDED_STATE_DICT
        expected = "pytorch_model_fsdp_0" if in_shards else "pytorch_model_fsdp.bin"
    found = next((name for name in WEIGHTS if (checkpoint / name).exists()), expected)
    if found != expected:
        raise FolderError(
            f"the checkpoint {checkpoint} was saved {WEIGHTS[found]}, this run is {WEIGHTS[expected]}; launch it as it "
            "was, or start anew with --overwrite"
        )


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


def keep(accelerator: Accelerator, bare: nn.Module, ema: Any, best: Any, others: Sequence[Any]) -> None:
    """Register what checkpoints hold beside the optimizer: weights, their moving average, the best ones, other states.

    ema: with `shadow_params`. best: with `weights`, which may be none yet. Where the model is sharded, both are saved
    shard by shard, so that any number of processes finds its own again.
    """
    if not accelerator.is_fsdp2:
        accelerator.register_for_checkpointing(ema, *others, best)
        _keep_unwrapped(accelerator, bare)
        return
    accelerator.register_for_checkpointing(_Without(ema, "shadow_params"), *others, _Without(best, "weights"))

    def before_saving(models: list[nn.Module], weights: list[dict[str, Tensor]], folder: str) -> None:
        for name, tensors in (("ema", ema.shadow_params), ("best", best.weights)):
            if tensors:
                save(_numbered(tensors), checkpoint_id=Path(folder) / name)

    def before_loading(models: list[nn.Module], folder: str) -> None:
        load(_numbered(ema.shadow_params), checkpoint_id=Path(folder) / "ema")
        if (Path(folder) / "best").exists():
            best.weights = [value.to("cpu", copy=True) for value in ema.shadow_params]
            load(_numbered(best.weights), checkpoint_id=Path(folder) / "best")

    accelerator.register_save_state_pre_hook(before_saving)
    accelerator.register_load_state_pre_hook(before_loading)


class _Without:
    """The state of something but for its tensors, which are saved elsewhere."""

    def __init__(self, of: Any, tensors: str) -> None:
        self.of, self.tensors = of, tensors

    def state_dict(self) -> dict[str, Any]:
        return {name: value for name, value in self.of.state_dict().items() if name != self.tensors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.of.load_state_dict(state)


def _numbered(tensors: Sequence[Tensor]) -> dict[str, Any]:
    return {str(number): value for number, value in enumerate(tensors)}


def _keep_unwrapped(accelerator: Accelerator, bare: nn.Module) -> None:
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
