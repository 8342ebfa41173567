"""The training loop: exactly N optimizer steps on any number of processes, resumable to the bit on the CPU."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from diffprune.data.calibration import Calibration, NoisyBatch, noisy_batch
from diffprune.data.images import ImageSet, load_batches
from diffprune.errors import DataError, ModelError, OptionError
from diffprune.models.conditions import on_device
from diffprune.models.families import predict
from diffprune.models.loading import pick_device
from diffprune.models.process import UNCONDITIONAL, Condition, DiffusionProcess, min_snr_weights
from diffprune.models.recording import PLAIN
from diffprune.options import FinetuneOptions, TrainingOptions
from diffprune.processes import process_state
from diffprune.progress import progress
from diffprune.recovery.batches import draw, image_indices, shard_steps
from diffprune.recovery.checkpoints import CHECKPOINTS, Progress, load_newest, save_checkpoint
from diffprune.recovery.features import Matched, matched_blocks
from diffprune.recovery.losses import denoising_loss, distillation_loss, feature_loss

Preview = Callable[[nn.Module, Path], None]
History = list[dict[str, float]]
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
) -> tuple[M, History]:
    """Train a copy of a denoiser; returns it with its EMA weights, and the logged losses.

    images: the images, or latents of the model's own with what it is told of each.
    folder: where checkpoints, logs and previews go (None: nowhere, and the run cannot be resumed).
    teacher: original model whose output is distilled. preview: draws a model into a PNG file.
    Everything random is a function of the seed and the step, so an interruption changes nothing.
    Raises OptionError when the batch does not divide over processes, ModelError when the loss diverges.
    """
    state = process_state(options.device)
    device = state.device if state.num_processes > 1 else pick_device(options.device)
    shards = shards_of(options, state.num_processes, state.process_index)
    accelerator = Accelerator(
        mixed_precision=options.mixed_precision,
        gradient_accumulation_steps=options.accumulation_steps,
        step_scheduler_with_optimizer=False,
        cpu=options.device == "cpu",
        log_with=None if options.tracker == "none" or folder is None else options.tracker,
        project_dir=str(folder) if folder is not None else None,
    )
    try:
        with torch.random.fork_rng():
            run = _Run(denoiser, process, images, options, accelerator, device, shards, teacher)
            run.to_the_end(folder, preview)
            return run.result(torch.device("cpu")), run.progress.history
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
        AcceleratorState._reset_state()


def check_conditions(process: DiffusionProcess, images: ImageSet | Calibration, options: TrainingOptions) -> None:
    """Raise ModelError or DataError where images and options do not suit what the model is told."""
    if isinstance(images, ImageSet) and process.classes is not None and images.labels is None:
        raise DataError(f"the model is class-conditional and the images of {images.source} bear no classes")
    if options.class_dropout and (process.classes is None or process.classes.null_class is None):
        raise ModelError("class_dropout: the model has no class that stands for none; leave it out")


class _Run:
    """One training run: the model, what trains it, and how far it is."""

    def __init__(
        self,
        denoiser: nn.Module,
        process: DiffusionProcess,
        images: ImageSet | Calibration,
        options: TrainingOptions,
        accelerator: Accelerator,
        device: torch.device,
        shards: list[slice],
        teacher: nn.Module | None,
    ) -> None:
        check_conditions(process, images, options)
        self.options, self.accelerator, self.device, self.shards = options, accelerator, device, shards
        self.process, self.images = process, images
        self.dtype = next(denoiser.parameters()).dtype
        self.bare = _cast(copy.deepcopy(denoiser).to(device), torch.float32).train().requires_grad_(True)
        self.dropouts: dict[nn.Module, float] = {m: m.p for m in self.bare.modules() if isinstance(m, nn.Dropout)}
        for module in self.bare.modules():
            if isinstance(module, nn.Dropout) and options.dropout is not None:
                module.p = options.dropout
        self.teacher = None if teacher is None else _as_teacher(teacher, device, options)
        self.matched = Matched({})
        if self.teacher is not None and isinstance(options, FinetuneOptions) and options.feature_weight:
            self.matched = matched_blocks(denoiser, self.teacher)
        kind = torch.optim.AdamW if options.optimizer == "adamw" else torch.optim.Adam
        optimizer = kind(self.bare.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
        self.model, self.optimizer = accelerator.prepare(self.bare, optimizer, device_placement=[False, False])
        name = "constant_with_warmup" if options.schedule == "constant" else options.schedule
        self.rates = get_scheduler(
            name, optimizer, num_warmup_steps=options.warmup_steps, num_training_steps=options.steps
        )
        self.ema = EMAModel(self.bare.parameters(), decay=options.ema_decay)
        self.progress = Progress()
        accelerator.register_for_checkpointing(self.ema, self.rates, self.progress)

    def to_the_end(self, folder: Path | None, preview: Preview | None) -> None:
        """Resume from the newest checkpoint, if any, and train until `options.steps`."""
        options = self.options
        if folder is not None:
            load_newest(self.accelerator, folder / CHECKPOINTS)
            self.ema.to(self.device)
            self.accelerator.init_trackers("logs")
        first = self.progress.step
        batches = self._batches(first)
        window: list[Tensor] = []
        with progress("training", options.steps, "steps", done=first) as advance:
            for step in range(first, options.steps):
                window.append(self._step(step, batches))
                done = self.progress.step = step + 1
                saves = done % options.checkpoint_every == 0 or done == options.steps
                if saves or done % options.log_every == 0:
                    self._log(window)
                    window = []
                if folder is not None and saves:
                    save_checkpoint(self.accelerator, folder / CHECKPOINTS, done)
                if folder is not None and preview is not None and self._previews(done):
                    preview(self.result(self.device), folder / "previews" / f"step-{done:07d}.png")
                advance(1, f"loss {self.progress.history[-1]['loss']:.4f}" if self.progress.history else "")

    def _previews(self, done: int) -> bool:
        every = self.options.preview_every
        return every > 0 and done % every == 0 and bool(self.accelerator.is_main_process)

    def result(self, device: torch.device) -> Any:
        """A copy of the model with its EMA weights, in its own dtype and with its own dropout, in eval mode."""
        trained = copy.deepcopy(self.bare)
        self.ema.copy_to(trained.parameters())
        for ours, own in zip(trained.modules(), self.bare.modules(), strict=True):
            if isinstance(ours, nn.Dropout):
                ours.p = self.dropouts[own]
        return _cast(trained.to(device), self.dtype).eval()

    def _step(self, step: int, batches: Any) -> Tensor:
        options, accelerator = self.options, self.accelerator
        losses = []
        draws = draw(self._shape, self.process.scheduler, options, step)
        indices = image_indices(len(self.images), options.batch_size, options.seed, step)
        for number, shard in enumerate(self.shards):
            clean = self._clean(next(batches), draws.mirrored[shard])
            noise, timesteps = draws.noise[shard].to(self.device), draws.timesteps[shard].to(self.device)
            (seed,) = np.random.SeedSequence([options.seed, 2, step, shard.start]).generate_state(1)
            torch.manual_seed(int(seed))
            condition = self._condition(indices[shard], draws.unlabelled[shard])
            convention = self.images.convention if isinstance(self.images, Calibration) else PLAIN
            batch = noisy_batch(self.process.scheduler, clean, noise, timesteps, condition, convention)
            with accelerator.accumulate(self.model):
                with accelerator.autocast():
                    loss = self._loss(batch, timesteps)
                accelerator.backward(loss)
                if accelerator.sync_gradients and options.grad_clip is not None:
                    accelerator.clip_grad_norm_(self.bare.parameters(), options.grad_clip)
                self.optimizer.step()
                self.optimizer.zero_grad()
            losses.append(loss.detach())
            assert accelerator.sync_gradients == (number + 1 == len(self.shards))
        self.rates.step()
        self.ema.step(self.bare.parameters())
        return torch.stack(losses).mean()

    @property
    def _shape(self) -> tuple[int, ...]:
        return tuple(self.images.clean.shape[1:]) if isinstance(self.images, Calibration) else self.process.shape

    def _clean(self, loaded: Tensor, mirrored: Tensor) -> Tensor:
        """x_0 of what was loaded: images, half of them mirrored, are encoded; latents are taken as they are."""
        if isinstance(self.images, Calibration):
            return loaded.to(self.device)
        images = torch.where(mirrored[:, None, None, None], loaded.flip(-1), loaded).to(self.device)
        return self.process.encode(images)

    def _condition(self, indices: Sequence[int], unlabelled: Tensor) -> Condition:
        """What the model is told of these images."""
        if isinstance(self.images, Calibration):
            return on_device(self.images.told(indices), self.device)
        classes, labels = self.process.classes, self.images.labels
        if classes is None or labels is None:
            return UNCONDITIONAL
        told = torch.tensor([labels[i] for i in indices])
        if classes.null_class is not None:
            told[unlabelled] = classes.null_class
        with torch.no_grad():
            return classes.embed(told.to(self.device))

    def _loss(self, batch: NoisyBatch, timesteps: Tensor) -> Tensor:
        """Loss of one forward pass. timesteps: (N,), of the schedule."""
        options, weights = self.options, None
        if not isinstance(options, FinetuneOptions):
            return denoising_loss(predict(self.model, batch.noisy, batch.timesteps, batch.condition), batch.target)
        if options.loss_weighting == "min-snr":
            weights = min_snr_weights(self.process.scheduler, timesteps)
        with self.matched.watched(self.bare) as ours:
            output = predict(self.model, batch.noisy, batch.timesteps, batch.condition)
        if self.teacher is None:
            return denoising_loss(output, batch.target, weights)
        with torch.no_grad(), self.matched.watched(self.teacher) as theirs:
            taught = predict(self.teacher, batch.noisy, batch.timesteps, batch.condition)
        loss = distillation_loss(output, batch.target, taught, options.teacher_weight, weights)
        if options.feature_weight:
            loss = loss + options.feature_weight * feature_loss(ours, self.matched.of_teacher(theirs))
        return loss

    def _log(self, window: list[Tensor]) -> None:
        mean: Any = self.accelerator.reduce(torch.stack(window).mean(), "mean")
        loss, step = float(mean), self.progress.step
        if not math.isfinite(loss):
            raise ModelError(f"the loss is {loss} at step {step}: training diverged; lower the learning rate")
        row = {"step": float(step), "loss": loss, "learning_rate": float(self.rates.get_last_lr()[0])}
        self.progress.history.append(row)
        self.accelerator.log({"loss": loss, "learning_rate": row["learning_rate"]}, step=step)

    def _batches(self, first_step: int) -> Iterator[Tensor]:
        indices = shard_steps(len(self.images), self.options, first_step, self.shards)
        if isinstance(self.images, Calibration):
            latents = self.images.clean
            return (latents[mine] for mine in indices)
        return load_batches(self.images, indices, num_workers=self.options.num_workers)


def _as_teacher(teacher: nn.Module, device: torch.device, options: TrainingOptions) -> nn.Module:
    """A copy that only answers, in the dtype that is asked for."""
    copied = copy.deepcopy(teacher).to(device).eval().requires_grad_(False)
    asked = options.teacher_dtype if isinstance(options, FinetuneOptions) else "fp32"
    if asked == "auto":
        return _cast(copied, torch.bfloat16) if device.type == "cuda" else copied
    return _cast(copied, torch.bfloat16 if asked == "bf16" else torch.float32)


def _cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    return model if next(model.parameters()).dtype == dtype else nn.Module.to(model, dtype)


def shards_of(options: TrainingOptions, num_processes: int, process_index: int) -> list[slice]:
    """The part of the global batch that a process takes in each forward pass of a step; raises OptionError."""
    size, rest = divmod(options.batch_size, num_processes * options.accumulation_steps)
    if rest or size == 0:
        raise OptionError(
            f"batch_size: got {options.batch_size}, which does not divide over {num_processes} processes "
            f"times {options.accumulation_steps} accumulation steps; give a multiple of "
            f"{num_processes * options.accumulation_steps}"
        )
    starts = [(number * num_processes + process_index) * size for number in range(options.accumulation_steps)]
    return [slice(start, start + size) for start in starts]
