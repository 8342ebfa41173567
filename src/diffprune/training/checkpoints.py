"""Checkpoints of a training run: written atomically, verified by checksum before loading, the newest ones kept."""

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
"""Name of the checkpoint folder inside the output folder of a stage."""

CHECKSUMS = "checksums.json"
"""File of a checkpoint, written last: the SHA-256 of each other file."""

WEIGHTS = {
    "model.safetensors": "without FSDP",
    "pytorch_model_fsdp_0": "under FSDP, in shards",
    "pytorch_model_fsdp.bin": "under FSDP, with FULL_STATE_DICT",
}
"""Names that accelerate gives to the weights in a checkpoint, and the launch that writes each."""

_log = logging.getLogger(__name__)


def save_checkpoint(accelerator: Accelerator, folder: Path, step: int, keep: int) -> None:
    """Save the state of all ranks as the folder `step-NNNNNNN`, which appears once it is complete.

    keep: number of newest checkpoints to keep. Raises FolderError where the checkpoint cannot be written.
    """
    accelerator.wait_for_everyone()
    with atomic_folder(folder / f"step-{step:07d}") if accelerator.is_main_process else nullcontext() as target:
        message: list[Any] = [target]
        broadcast_object_list(message)
        try:
            accelerator.save_state(str(message[0]))
        except (RuntimeError, CheckpointException) as error:  # from torch.save, and from sharded saving
            if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # torch.save on a full disk
                raise
            raise FolderError(
                f"cannot write a checkpoint to {folder}; free disk space and run the same command again to resume"
            ) from error
        accelerator.wait_for_everyone()
        if target is not None:
            checksums = {str(path.relative_to(target)): _sha256(path) for path in _files(target)}
            write_json(target / CHECKSUMS, checksums)
    if accelerator.is_main_process:
        for old in sorted(folder.glob("step-*"))[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def load_newest(accelerator: Accelerator, folder: Path) -> bool:
    """Restore the newest intact checkpoint into everything prepared or registered; returns False without one.

    A damaged checkpoint is skipped with a warning. The world size may differ from that of the run that saved it.
    Raises FolderError where the checkpoint is sharded and this run is not, or the reverse.
    """
    message: list[Any] = [newest_intact(folder) if accelerator.is_main_process else None]
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
    saved = next((name for name in WEIGHTS if (checkpoint / name).exists()), expected)
    if saved != expected:
        raise FolderError(
            f"the checkpoint {checkpoint} was saved {WEIGHTS[saved]}, but this run is {WEIGHTS[expected]}; launch it "
            "the same way, or start again with --overwrite"
        )


def newest_intact(folder: Path, last_step: int | None = None) -> Path | None:
    """Return the newest checkpoint, up to a step, whose files match their checksums; None without one."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        if last_step is not None and int(path.name.removeprefix("step-")) > last_step:
            continue
        fault = fault_of(path)
        if fault is None:
            return path
        _log.warning("skipped the checkpoint %s: %s; trying the previous one", path, fault)
    return None


def fault_of(checkpoint: Path) -> str | None:
    """Describe the damage of a checkpoint; None for an intact one."""
    try:
        sums = read_json(checkpoint / CHECKSUMS)
    except (OSError, ValueError):
        sums = {}
    if not sums:
        return f"its {CHECKSUMS} is missing or damaged"
    for name, expected in sums.items():
        try:
            checksum = _sha256(checkpoint / name)
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if checksum != expected:
            return f"{name} has changed since it was written"
    return None


def register_state(accelerator: Accelerator, bare: nn.Module, ema: Any, best: Any, others: Sequence[Any]) -> None:
    """Register what checkpoints contain in addition to the optimizer: weights, EMA, best weights, other states.

    ema: has `shadow_params`. best: has `weights`, empty before the first validation. For a sharded model both are
    saved as distributed checkpoints, so that a run with another world size can load its shards.
    """
    if not accelerator.is_fsdp2:
        accelerator.register_for_checkpointing(ema, *others, best)
        _register_unwrapped(accelerator, bare)
        return
    accelerator.register_for_checkpointing(
        _WithoutTensors(ema, "shadow_params"), *others, _WithoutTensors(best, "weights")
    )

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


class _WithoutTensors:
    """State of an object without one attribute, whose tensors are saved separately."""

    def __init__(self, source: Any, attribute: str) -> None:
        self.source, self.attribute = source, attribute

    def state_dict(self) -> dict[str, Any]:
        return {name: value for name, value in self.source.state_dict().items() if name != self.attribute}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.source.load_state_dict(state)


def _numbered(tensors: Sequence[Tensor]) -> dict[str, Any]:
    return {str(number): value for number, value in enumerate(tensors)}


def _register_unwrapped(accelerator: Accelerator, bare: nn.Module) -> None:
    """Save and load the weights of the unwrapped model, so that a run with another world size can load them."""

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
