"""Checkpoints of a training run: complete or absent, the last two kept."""

import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from diffprune.records import PART, whole_folder

CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints below the stage's own."""

KEPT = 2
"""How many checkpoints stay."""


class Progress:
    """How far a run is and what it logged; saved and restored with the checkpoint."""

    def __init__(self) -> None:
        self.step = 0
        self.history: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        """For accelerate."""
        return {"step": self.step, "history": self.history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """For accelerate."""
        self.step, self.history = state["step"], state["history"]


def save_checkpoint(accelerator: Accelerator, folder: Path, step: int) -> None:
    """Save the state of all processes as `step-NNNNNN`; it appears when everything is written."""
    accelerator.wait_for_everyone()
    target = folder / f"step-{step:07d}"
    if accelerator.num_processes == 1:
        with whole_folder(target) as beside:
            accelerator.save_state(str(beside))
    else:
        beside = folder / f".step-{step:07d}{PART}"
        accelerator.save_state(str(beside))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            beside.rename(target)
    if accelerator.is_main_process:
        for old in sorted(folder.glob("step-*"))[:-KEPT]:
            shutil.rmtree(old)


def load_newest(accelerator: Accelerator, folder: Path) -> bool:
    """Restore the newest checkpoint into everything prepared or registered; False when there is none."""
    found = sorted(folder.glob("step-*"))
    if found:
        accelerator.load_state(str(found[-1]))
    return bool(found)
