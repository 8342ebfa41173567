"""How far a training run is, what it logged, and whether its loss has exploded."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffprune.errors import ModelError

History = list[dict[str, float]]

VALIDATION = "validation_error"
"""Entry of the rows of a history that a validation has been made for."""

NUM_BINS = 4
"""Parts of the timesteps whose noise errors are logged apart."""

NUM_JUDGED = 50
"""Steps whose mean loss is judged: batches of a single image differ up to a hundredfold by their timesteps alone, and
the mean over 50 of them stays within about a third."""

EXPLODED = 10.0
"""How many times the lowest mean so far such a mean may be."""


class DivergenceError(ModelError):
    """The loss or the gradient is not finite any more, or the loss has exploded.

    sound_step: the last step before anything was wrong. checkpoint: the newest one from then or before, if any.
    """

    def __init__(self, what: str, sound_step: int) -> None:
        super().__init__(
            f"{what}: training diverged; lower the learning rate or grad_clip, or lengthen the warm-up, and start anew"
        )
        self.sound_step = sound_step
        self.checkpoint: Path | None = None


class TrainingLog:
    """What a checkpoint knows of the run beside its weights.

    step: optimizer steps done. history: what was logged, a row per `log_every` steps and per validation.
    """

    def __init__(self) -> None:
        self.step = 0
        self.history: History = []
        self._window: list[list[float]] = []
        self._losses: list[float] = []
        self._lowest = math.inf

    def state_dict(self) -> dict[str, Any]:
        """For accelerate."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """For accelerate."""
        vars(self).update(state)

    @property
    def last_loss(self) -> float:
        """Loss of the last step."""
        return self._losses[-1]

    def note(self, facts: Sequence[float]) -> None:
        """Take in the `step_facts` of a step; raises DivergenceError when they show that."""
        loss = facts[0]
        if not math.isfinite(loss):
            raise DivergenceError(f"the loss is {loss} at step {self.step + 1}", self.step)
        self.step += 1
        self._window.append(list(facts))
        self._losses = [*self._losses, loss][-NUM_JUDGED:]
        if len(self._losses) == NUM_JUDGED:
            mean = sum(self._losses) / NUM_JUDGED
            self._lowest = min(self._lowest, mean)
            if mean > EXPLODED * self._lowest:
                raise DivergenceError(
                    f"the mean loss of the {NUM_JUDGED} steps up to {self.step} is {mean:.4g}, over {EXPLODED:g} times "
                    f"the lowest such mean before, {self._lowest:.4g}",
                    self.step - NUM_JUDGED,
                )

    def num_validations_since(self, step: int) -> int:
        """How many validations there were after a step."""
        return sum(VALIDATION in row and row["step"] > step for row in self.history)

    def close_row(self, learning_rate: float, num_timesteps: int) -> dict[str, float]:
        """Put the steps since the last row into a row of the history; returns it."""
        sums = torch.tensor(self._window, dtype=torch.float64).sum(0)
        row = {"step": float(self.step), "loss": float(sums[0]) / len(self._window), "learning_rate": learning_rate}
        for bin_, (total, count) in enumerate(zip(sums[1 : 1 + NUM_BINS], sums[1 + NUM_BINS :], strict=True)):
            if count:
                row[f"noise_error_{bin_name(bin_, num_timesteps)}"] = float(total / count)
        self.history.append(row)
        self._window = []
        return row


def bin_name(bin_: int, num_timesteps: int) -> str:
    """First and last timestep of a bin."""
    first, end = (-(-i * num_timesteps // NUM_BINS) for i in (bin_, bin_ + 1))
    return f"t{first}_{end - 1}"


def step_facts(losses: Sequence[Tensor], errors: Tensor, timesteps: Tensor, num_timesteps: int) -> Tensor:
    """Loss of a step, then the sums and numbers of the noise errors in each bin of timesteps, in float64 on the CPU.

    losses: of each pass. errors, timesteps (0 to T - 1): of each image.
    """
    bins = timesteps.cpu() * NUM_BINS // num_timesteps
    facts = torch.zeros(1 + 2 * NUM_BINS, dtype=torch.float64)
    facts[0] = torch.stack(list(losses)).double().mean().cpu()
    facts[1 : 1 + NUM_BINS].index_add_(0, bins, errors.double().cpu())
    facts[1 + NUM_BINS :] = torch.bincount(bins, minlength=NUM_BINS)
    return facts
