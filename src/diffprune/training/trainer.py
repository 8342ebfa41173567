"""The training loop: N optimizer steps on any number of ranks, resumable bit for bit on the CPU."""

import math
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from diffprune.calibration.calibration_set import Calibration
from diffprune.compute.autocast import resolve_precision, short_attention_in_fp32
from diffprune.compute.device import pick_device
from diffprune.compute.placement import checkpointed
from diffprune.data.images import ImageSet
from diffprune.errors import Interrupted
from diffprune.options import TrainingOptions
from diffprune.pipelines.diffusion import DiffusionProcess, num_timesteps_of
from diffprune.pipelines.predict import predict
from diffprune.runs.distributed import all_reduce_sum, process_state, recorded_signals
from diffprune.runs.progress import progress
from diffprune.training.batches import TrainingData
from diffprune.training.checkpoints import CHECKPOINTS, load_newest, newest_intact, register_state, save_checkpoint
from diffprune.training.draws import draw, shards_of
from diffprune.training.fsdp import accelerated
from diffprune.training.history import VALIDATION, DivergenceError, History, TrainingLog, step_facts
from diffprune.training.losses import noise_errors
from diffprune.training.objective import Objective
from diffprune.training.step_callback import OnStep, StepFacts
from diffprune.training.train_state import TrainState
from diffprune.training.validation import BestWeights, Validation

Preview = Callable[[nn.Module, Path], None]
M = TypeVar("M", bound=nn.Module)


def train_denoiser(
    denoiser: M,
    process: DiffusionProcess,
    images: ImageSet | Calibration,
    options: TrainingOptions,
    *,
    folder: Path | None = None,
    teacher: nn.Module | None = None,
    preview: Preview | None = None,
    on_step: OnStep | None = None,
) -> tuple[M, History]:
    """Train a copy of a denoiser; returns it with its EMA weights, and the history.

    With held-out images the weights are those of the lowest validation error, else the last; see `result_step`.
    images: images, or latents of the model with the conditioning of each.
    folder: where checkpoints, logs and previews are saved; None saves nothing, and the run cannot be resumed.
    teacher: original model whose output is distilled. preview: draws images of a model into a PNG file.
    on_step: called on the main process after each optimizer step, see `OnStep`.
    All random draws depend on the seed and the step alone, so a resumed run has the same result.
    With a folder, SIGTERM and SIGINT end the run after the current step and its checkpoint: Interrupted is raised.
    Launched by accelerate with FSDP2, weights, gradients, EMA and the teacher are sharded over the ranks.
    Raises OptionError when the batch does not divide over ranks or FSDP does not support the options,
    DivergenceError when training diverges.
    """
    state, options = process_state(options.device), resolve_precision(options)
    device = state.device if state.num_processes > 1 else pick_device(options.device)
    shards = shards_of(options, state.num_processes, state.process_index)
    with accelerated(options, folder) as accelerator, torch.random.fork_rng():
        data = TrainingData(process, images, options, device)
        train_state = TrainState(denoiser, options, accelerator, device)
        objective = Objective(
            denoiser, train_state.bare, teacher, options, process.scheduler, device=device, place=train_state.place
        )
        run = _Run(train_state, data, shards, objective)
        try:
            run.run_all_steps(folder, preview, on_step)
        except DivergenceError as error:
            error.checkpoint = None if folder is None else newest_intact(folder / CHECKPOINTS, error.sound_step)
            raise
        return train_state.result(torch.device("cpu"), run.best.weights), run.log.history


def result_step(history: History) -> int:
    """Return the step whose EMA weights are the result: lowest validation error, else the last step."""
    validated = [row for row in history if VALIDATION in row]
    return int(min(validated, key=lambda row: row[VALIDATION])["step"] if validated else history[-1]["step"])


class _Run:
    """One training run: state, data, objective, log and best weights."""

    def __init__(self, state: TrainState, data: TrainingData, shards: list[slice], objective: Objective) -> None:
        self.state, self.data, self.shards, self.objective = state, data, shards, objective
        self.options, self.accelerator = state.options, state.accelerator
        self.num_timesteps = num_timesteps_of(data.process.scheduler)
        self.validation = Validation(data, shards[0].stop - shards[0].start) if data.held_out_indices else None
        self.log, self.best = TrainingLog(), BestWeights()
        register_state(self.accelerator, state.bare, state.ema, self.best, [state.rates, self.log])

    def run_all_steps(self, folder: Path | None, preview: Preview | None, on_step: OnStep | None) -> None:
        """Resume from the newest checkpoint, if any, and train until `options.steps` or the early stop."""
        options, log = self.options, self.log
        if folder is not None:
            load_newest(self.accelerator, folder / CHECKPOINTS)
            if not self.state.sharded:
                self.state.ema.to(self.state.device)
            self.accelerator.init_trackers("logs")
        if log.step == 0 and self.validation is not None:
            log.history.append({"step": 0.0, VALIDATION: self._validate(self.validation)})
        batches = self.data.training_batches(log.step, self.shards)
        signals_context: AbstractContextManager[list[int]] = nullcontext([]) if folder is None else recorded_signals()
        with (
            checkpointed(self.state.bare) if options.gradient_checkpointing else nullcontext(),
            signals_context as signals,
            progress("training", options.steps, "steps", done=log.step) as advance,
        ):
            while not self._finished:
                stop_signal = self._step(batches, signals)
                self._log_row()
                if folder is not None and (stop_signal or self._finished or self._at(options.checkpoint_every)):
                    save_checkpoint(self.accelerator, folder / CHECKPOINTS, log.step, options.keep_checkpoints)
                if folder is not None and preview is not None and self._previews:
                    path = folder / "previews" / f"step-{log.step:07d}.png"
                    preview(self.state.result(self.state.device), path)
                if on_step is not None and self.accelerator.is_main_process:
                    on_step(log.step, StepFacts(log.last_loss, self._learning_rate, self.state))
                row = log.history[-1] if log.history else {}
                advance(1, f"loss {row['loss']:.4f}" if "loss" in row else "")
                if stop_signal is not None:
                    raise Interrupted(
                        f"stopped by {stop_signal.name} after step {log.step}, which is saved; run the same command "
                        "again to resume",
                        stop_signal,
                    )

    @property
    def _finished(self) -> bool:
        patience = self.options.early_stop
        stops_early = patience is not None and self.log.num_validations_since(self.best.step) >= patience
        return stops_early or self.log.step == self.options.steps

    def _at(self, every: int) -> bool:
        return every > 0 and (self.log.step % every == 0 or self.log.step == self.options.steps)

    @property
    def _learning_rate(self) -> float:
        return float(self.state.rates.get_last_lr()[0])

    @property
    def _previews(self) -> bool:
        every = self.options.preview_every
        return every > 0 and self.log.step % every == 0 and bool(self.accelerator.is_main_process)

    def _step(self, batches: Iterator[Tensor], signals: list[int]) -> signal.Signals | None:
        """Run one optimizer step; returns the signal that a rank has received, if any."""
        options, accelerator, step = self.options, self.accelerator, self.log.step
        losses, errors, timesteps = [], [], []
        draws = draw(self.data.shape, self.data.process.scheduler, options, step)
        indices = self.data.indices(step)
        for number, shard in enumerate(self.shards):
            batch = self.data.add_noise(next(batches), indices[shard], draws[shard])
            (seed,) = np.random.SeedSequence([options.seed, 2, step, shard.start]).generate_state(1)
            torch.manual_seed(int(seed))
            with accelerator.accumulate(self.state.model):
                with accelerator.autocast(), short_attention_in_fp32():
                    with self.objective.recorded_features() as features:
                        output = predict(self.state.model, batch.noisy, batch.timesteps, batch.condition)
                    loss = self.objective.loss(output, features, batch, draws.timesteps[shard])
                accelerator.backward(loss)
                self.state.update(step)
            losses.append(loss.detach())
            errors.append(noise_errors(output.detach(), batch.target))
            timesteps.append(draws.timesteps[shard])
            assert accelerator.sync_gradients == (number + 1 == len(self.shards))
        facts = step_facts(losses, torch.cat(errors), torch.cat(timesteps), self.num_timesteps)
        facts[0] /= accelerator.num_processes
        received = torch.tensor([number in signals for number in (signal.SIGTERM, signal.SIGINT)])
        *step_sums, terminated, interrupted = all_reduce_sum(
            torch.cat([facts, received.double()]), options.device
        ).tolist()
        self.log.add_step(step_sums)
        return signal.SIGTERM if terminated else signal.SIGINT if interrupted else None

    def _log_row(self) -> None:
        """Log the steps since the last row and validate, where one of the two is due."""
        options, log = self.options, self.log
        validation = self.validation if self._at(options.validate_every) else None
        if validation is None and not self._at(options.log_every):
            return
        row = log.close_row(self._learning_rate, self.num_timesteps)
        if validation is not None:
            row[VALIDATION] = self._validate(validation)
        self.accelerator.log({name: value for name, value in row.items() if name != "step"}, step=log.step)

    def _validate(self, validation: Validation) -> float:
        """Return the error of the EMA weights on the held-out images, and keep the best weights."""
        with self.accelerator.autocast(), self.state.evaluated() as model:
            error = validation.error(model)
        if not math.isfinite(error):
            raise DivergenceError(f"the validation error is {error} at step {self.log.step}", self.log.step)
        self.best.offer(self.state.ema.shadow_params, self.log.step, error)
        return error
