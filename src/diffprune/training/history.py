"""Log of a training run: losses and noise errors per step, rows of the history, divergence."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffprune.errors import ModelError

History = list[dict[str, float]]

VALIDATION = "validation_error"
"""Key of the validation error in the rows of a history."""

NUM_BINS = 4
"""Number of timestep bins with a noise error of their own in the log."""

DIVERGENCE_STEPS = 50
"""Steps of the moving mean loss. The losses of single-image batches differ up to a hundredfold by their timesteps
alone; means over 50 of them agree within about a third."""

DIVERGENCE_FACTOR = 10.0
"""Training has diverged when the moving mean loss exceeds its minimum by more than this factor."""


class DivergenceError(ModelError):
    """The loss or the gradient is not finite, or the mean loss has exploded.

    sound_step: the last step before the divergence. checkpoint: the newest checkpoint up to that step, if any.
    """

    def __init__(self, what: str, sound_step: int) -> None:
        super().__init__(
            f"{what}: training diverged; lower learning_rate or grad_clip, or raise warmup_steps, and train again"
        )
        self.sound_step = sound_step
        self.checkpoint: Path | None = None


class TrainingLog:
    """Progress and log of a run, saved in its checkpoints.

    step: number of optimizer steps so far. history: one row per `log_every` steps and per validation.
    """

    def __init__(self) -> None:
        self.step = 0
        self.history: History = []
        self._window: list[list[float]] = []
        self._losses: list[float] = []
        self._lowest = math.inf

    def state_dict(self) -> dict[str, Any]:
        """State in checkpoints, saved and restored by accelerate."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """State in checkpoints, saved and restored by accelerate."""
        vars(self).update(state)

    @property
    def last_loss(self) -> float:
        """Loss of the latest step."""
        return self._losses[-1]

    def add_step(self, facts: Sequence[float]) -> None:
        """Add the `step_facts` of a step; raises DivergenceError when training has diverged."""
        loss = facts[0]
        if not math.isfinite(loss):
            raise DivergenceError(f"the loss is {loss} at step {self.step + 1}", self.step)
        self.step += 1
        self._window.append(list(facts))
        self._losses = [*self._losses, loss][-DIVERGENCE_STEPS:]
        if len(self._losses) == DIVERGENCE_STEPS:
            mean = sum(self._losses) / DIVERGENCE_STEPS
            self._lowest = min(self._lowest, mean)
            if mean > DIVERGENCE_FACTOR * self._lowest:
                raise DivergenceError(
                    f"the mean loss of the {DIVERGENCE_STEPS} steps up to {self.step} is {mean:.4g}, over "
                    f"{DIVERGENCE_FACTOR:g} times the lowest such mean, {self._lowest:.4g}",
                    self.step - DIVERGENCE_STEPS,
                )

    def num_validations_since(self, step: int) -> int:
        """Return the number of validations after a step."""
        return sum(VALIDATION in row and row["step"] > step for row in self.history)

    def close_row(self, learning_rate: float, num_timesteps: int) -> dict[str, float]:
        """Append a row to the history for the steps since the last row; returns the row."""
        sums = torch.tensor(self._window, dtype=torch.float64).sum(0)
        row = {"step": float(self.step), "loss": float(sums[0]) / len(self._window), "learning_rate": learning_rate}
        for bin_, (total, count) in enumerate(zip(sums[1 : 1 + NUM_BINS], sums[1 + NUM_BINS :], strict=True)):
            if count:
                row[f"noise_error_{bin_name(bin_, num_timesteps)}"] = float(total / count)
        self.history.append(row)
        self._window = []
        return row


def bin_name(bin_: int, num_timesteps: int) -> str:
    """Return the name of a bin: its first and last timestep."""
    first, end = (-(-i * num_timesteps // NUM_BINS) for i in (bin_, bin_ + 1))
    return f"t{first}_{end - 1}"


def step_facts(losses: Sequence[Tensor], errors: Tensor, timesteps: Tensor, num_timesteps: int) -> Tensor:
    """Return the loss of a step, then the sum and the count of noise errors per timestep bin: float64, on the CPU.

    losses: one per forward pass. errors, timesteps (0 to T - 1): one per image.
    """
    bins = timesteps.cpu() * NUM_BINS // num_timesteps
    facts = torch.zeros(1 + 2 * NUM_BINS, dtype=torch.float64)
    facts[0] = torch.stack(list(losses)).double().mean().cpu()
    facts[1 : 1 + NUM_BINS].index_add_(0, bins, errors.double().cpu())
    facts[1 + NUM_BINS :] = torch.bincount(bins, minlength=NUM_BINS)
    return facts
