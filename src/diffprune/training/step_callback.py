"""The callback of a training run: what it receives after each optimizer step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diffprune.errors import ModelError
from diffprune.training.train_state import TrainState


@dataclass(frozen=True)
class StepFacts:
    """Facts of one optimizer step.

    loss: mean training loss of the step over the global batch, all ranks included.
    learning_rate: that of the next step, as in the rows of the history.
    """

    loss: float
    learning_rate: float
    _state: TrainState

    def ema_denoiser(self) -> Any:
        """Return a copy of the denoiser with its EMA weights: in eval mode, in the model's dtype, on its device.

        The copy is made at each call, so calls cost time and memory; training does not change it afterwards.
        Raises ModelError for a sharded denoiser, whose full weights no single rank has.
        """
        if self._state.sharded:
            raise ModelError(
                "on_step: the EMA denoiser of a training sharded by FSDP is not supported; train without FSDP, or "
                "validate with num_validation_images"
            )
        return self._state.result(self._state.device)


OnStep = Callable[[int, StepFacts], None]
"""Called as `on_step(step, facts)` on the main process after each optimizer step; `step` counts from 1.

Logs, checkpoint and preview of the step are written before the call. An exception ends the training and propagates.
Random numbers that the callback draws change nothing in the training. A resumed run calls it for its own steps only.
"""
