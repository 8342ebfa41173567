"""Command `train`: train a denoiser from scratch."""

from pathlib import Path
from typing import Any

from diffprune.compute.autocast import resolve_precision
from diffprune.options import TrainOptions
from diffprune.pipelines.denoiser_access import with_denoiser
from diffprune.pipelines.diffusion import process_of
from diffprune.runs.distributed import shared_run
from diffprune.runs.run_record import Existing
from diffprune.training.step_callback import OnStep
from diffprune.training.train_into_folder import train_into_folder
from diffprune.training.trainer import train_denoiser
from diffprune.training.training_data import open_images
from diffprune.training.untrained_pipeline import untrained_pipeline


def train_pipeline(options: TrainOptions, *, on_step: OnStep | None = None) -> Any:
    """Train a denoiser from scratch in memory; return a pipeline with its EMA weights.

    on_step: called on the main process after each optimizer step.
    """
    pipeline = untrained_pipeline(options)
    process = process_of(pipeline)
    trained, _ = train_denoiser(pipeline.unet, process, open_images(process, options), options, on_step=on_step)
    return with_denoiser(pipeline, trained)


def train_stage(options: TrainOptions, out: Path, *, existing: Existing = "refuse") -> dict[str, Any]:
    """Train a denoiser from scratch into a pipeline folder; an interrupted run resumes."""
    options = resolve_precision(options)
    with shared_run(
        out, "train", options.resolved(), {"data": options.data}, device=options.device, existing=existing,
        neutral=options.neutral,
    ) as run:  # fmt: skip
        if not run.finished_before:
            pipeline = untrained_pipeline(options)
            process = process_of(pipeline)
            run.result = train_into_folder(run.folder, pipeline, process, open_images(process, options), options)
        return run.result
