"""The training loop: exactly N optimizer steps on any number of processes, resumable to the bit on the CPU."""

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
from diffprune.training.batches import Feed
from diffprune.training.checkpoints import CHECKPOINTS, keep, load_newest, newest_whole, save_checkpoint
from diffprune.training.draws import draw, shards_of
from diffprune.training.fsdp import accelerated
from diffprune.training.history import VALIDATION, DivergenceError, History, TrainingLog, step_facts
from diffprune.training.losses import noise_errors
from diffprune.training.objective import Objective
from diffprune.training.step_callback import OnStep, StepFacts
from diffprune.training.train_state import TrainState
from diffprune.training.validation import Best, Validation

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
    """Train a copy of a denoiser; returns it with its EMA weights, and what was logged.

    With held-out images the weights are those of the lowest validation error, else the last; see `result_step`.
    images: the images, or latents of the model's own with what it is told of each.
    folder: where checkpoints, logs and previews go (None: nowhere, and the run cannot be resumed).
    teacher: original model whose output is distilled. preview: draws a model into a PNG file.
    on_step: called on the main process after each optimizer step, see `OnStep`.
    Everything random is a function of the seed and the step, so an interruption changes nothing.
    With a folder, SIGTERM or SIGINT ends it after the current step by raising Interrupted.
    Launched by accelerate with FSDP2, weights, gradients, averages and the teacher are sharded over the processes.
    Raises OptionError when the batch does not divide over processes or sharding cannot serve the options,
    DivergenceError when training diverges.
    """
    state, options = process_state(options.device), resolve_precision(options)
    device = state.device if state.num_processes > 1 else pick_device(options.device)
    shards = shards_of(options, state.num_processes, state.process_index)
    with accelerated(options, folder) as accelerator, torch.random.fork_rng():
        feed = Feed(process, images, options, device)
        learner = TrainState(denoiser, options, accelerator, device)
        objective = Objective(
            denoiser, learner.bare, teacher, options, process.scheduler, device=device, place=learner.place
        )
        run = _Run(learner, feed, shards, objective)
        try:
            run.to_the_end(folder, preview, on_step)
        except DivergenceError as error:
            error.checkpoint = None if folder is None else newest_whole(folder / CHECKPOINTS, error.sound_step)
            raise
        return run.learner.result(torch.device("cpu"), run.best.weights), run.journal.history


def result_step(history: History) -> int:
    """The step whose EMA weights are the result: that of the lowest validation error, else the last."""
    validated = [row for row in history if VALIDATION in row]
    return int(min(validated, key=lambda row: row[VALIDATION])["step"] if validated else history[-1]["step"])


class _Run:
    """One training run: what trains, on what, and how far it is."""

    def __init__(self, learner: TrainState, feed: Feed, shards: list[slice], objective: Objective) -> None:
        self.learner, self.feed, self.shards, self.objective = learner, feed, shards, objective
        self.options, self.accelerator = learner.options, learner.accelerator
        self.num_timesteps = num_timesteps_of(feed.process.scheduler)
        self.validation = Validation(feed, shards[0].stop - shards[0].start) if feed.held_out else None
        self.journal, self.best = TrainingLog(), Best()
        keep(self.accelerator, learner.bare, learner.ema, self.best, [learner.rates, self.journal])

    def to_the_end(self, folder: Path | None, preview: Preview | None, on_step: OnStep | None) -> None:
        """Resume from the newest checkpoint, if any, and train until `options.steps` or the early stop."""
        options, journal = self.options, self.journal
        if folder is not None:
            load_newest(self.accelerator, folder / CHECKPOINTS)
            if not self.learner.sharded:
                self.learner.ema.to(self.learner.device)
            self.accelerator.init_trackers("logs")
        if journal.step == 0 and self.validation is not None:
            journal.history.append({"step": 0.0, VALIDATION: self._validate(self.validation)})
        batches = self.feed.training_batches(journal.step, self.shards)
        noting: AbstractContextManager[list[int]] = nullcontext([]) if folder is None else recorded_signals()
        with (
            checkpointed(self.learner.bare) if options.gradient_checkpointing else nullcontext(),
            noting as signals,
            progress("training", options.steps, "steps", done=journal.step) as advance,
        ):
            while not self._finished:
                stopping = self._step(batches, signals)
                self._log()
                if folder is not None and (stopping or self._finished or self._at(options.checkpoint_every)):
                    save_checkpoint(self.accelerator, folder / CHECKPOINTS, journal.step, options.keep_checkpoints)
                if folder is not None and preview is not None and self._previews:
                    path = folder / "previews" / f"step-{journal.step:07d}.png"
                    preview(self.learner.result(self.learner.device), path)
                if on_step is not None and self.accelerator.is_main_process:
                    on_step(journal.step, StepFacts(journal.last_loss, self._learning_rate, self.learner))
                row = journal.history[-1] if journal.history else {}
                advance(1, f"loss {row['loss']:.4f}" if "loss" in row else "")
                if stopping is not None:
                    raise Interrupted(
                        f"stopped by {stopping.name} after step {journal.step}, which is saved; the same command goes "
                        "on from there",
                        stopping,
                    )

    @property
    def _finished(self) -> bool:
        patience = self.options.early_stop
        stops = patience is not None and self.journal.num_validations_since(self.best.step) >= patience
        return stops or self.journal.step == self.options.steps

    def _at(self, every: int) -> bool:
        return every > 0 and (self.journal.step % every == 0 or self.journal.step == self.options.steps)

    @property
    def _learning_rate(self) -> float:
        return float(self.learner.rates.get_last_lr()[0])

    @property
    def _previews(self) -> bool:
        every = self.options.preview_every
        return every > 0 and self.journal.step % every == 0 and bool(self.accelerator.is_main_process)

    def _step(self, batches: Iterator[Tensor], signals: list[int]) -> signal.Signals | None:
        """One optimizer step; returns the signal that one of the processes has received."""
        options, accelerator, step = self.options, self.accelerator, self.journal.step
        losses, errors, timesteps = [], [], []
        draws = draw(self.feed.shape, self.feed.process.scheduler, options, step)
        indices = self.feed.indices(step)
        for number, shard in enumerate(self.shards):
            batch = self.feed.noisy(next(batches), indices[shard], draws[shard])
            (seed,) = np.random.SeedSequence([options.seed, 2, step, shard.start]).generate_state(1)
            torch.manual_seed(int(seed))
            with accelerator.accumulate(self.learner.model):
                with accelerator.autocast(), short_attention_in_fp32():
                    with self.objective.watching() as features:
                        output = predict(self.learner.model, batch.noisy, batch.timesteps, batch.condition)
                    loss = self.objective.loss(output, features, batch, draws.timesteps[shard])
                accelerator.backward(loss)
                self.learner.update(step)
            losses.append(loss.detach())
            errors.append(noise_errors(output.detach(), batch.target))
            timesteps.append(draws.timesteps[shard])
            assert accelerator.sync_gradients == (number + 1 == len(self.shards))
        facts = step_facts(losses, torch.cat(errors), torch.cat(timesteps), self.num_timesteps)
        facts[0] /= accelerator.num_processes
        received = torch.tensor([number in signals for number in (signal.SIGTERM, signal.SIGINT)])
        *noted, terminated, interrupted = all_reduce_sum(torch.cat([facts, received.double()]), options.device).tolist()
        self.journal.note(noted)
        return signal.SIGTERM if terminated else signal.SIGINT if interrupted else None

    def _log(self) -> None:
        """Log the steps since the last row, and validate, where it is time to."""
        options, journal = self.options, self.journal
        validation = self.validation if self._at(options.validate_every) else None
        if validation is None and not self._at(options.log_every):
            return
        row = journal.close_row(self._learning_rate, self.num_timesteps)
        if validation is not None:
            row[VALIDATION] = self._validate(validation)
        self.accelerator.log({name: value for name, value in row.items() if name != "step"}, step=journal.step)

    def _validate(self, validation: Validation) -> float:
        """Error of the EMA weights on the held-out images; the best weights are kept."""
        with self.accelerator.autocast(), self.learner.evaluated() as model:
            error = validation.error(model)
        if not math.isfinite(error):
            raise DivergenceError(f"the validation error is {error} at step {self.journal.step}", self.journal.step)
        self.best.offer(self.learner.ema.shadow_params, self.journal.step, error)
        return error
