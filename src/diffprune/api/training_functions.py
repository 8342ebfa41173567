"""Public functions that train a model."""

import os
from pathlib import Path
from typing import Any

from diffprune.api.arguments import check_no_folder_options, existing, model_source, model_value
from diffprune.api.keyword_options import with_options
from diffprune.api.results import Results
from diffprune.data.memory_images import data_source
from diffprune.errors import OptionError
from diffprune.options import ClassifierOptions, FinetuneOptions, TrainOptions
from diffprune.pipelines.loading import load_pipeline
from diffprune.stages.finetune_stage import finetune_pipeline, finetune_stage
from diffprune.stages.train_classifier_stage import classifier_stage
from diffprune.stages.train_stage import train_pipeline, train_stage
from diffprune.training.step_callback import OnStep

Source = str | os.PathLike[str]


@with_options(options=FinetuneOptions)
def finetune(
    model: Any,
    teacher: Any = None,
    *,
    options: FinetuneOptions,
    out: Source | None = None,
    overwrite: bool = False,
    on_step: OnStep | None = None,
) -> Any:
    """Return a finetuned copy of a pruned pipeline, with EMA weights; `model` is unchanged.

    model: a pipeline, or its folder, hub id or built-in name. teacher: the original pipeline, denoiser, folder, hub id
    or built-in name, whose output is distilled; None trains without distillation. out: folder for the pipeline,
    checkpoints, logs and previews; an interrupted call with `out` resumes. None saves nothing; options of
    checkpoints, previews and trackers are then errors.
    on_step: called as `on_step(step, facts)` on the main process after each optimizer step, with the loss, the learning
    rate and `facts.ema_denoiser()`; not supported with `out`.
    Raises OptionError, ModelError or DataError before any work if an argument is wrong or missing.
    """
    if out is None:
        check_no_folder_options(options)
        original = None if teacher is None else model_value(teacher)
        return finetune_pipeline(model_value(model), original, options, on_step=on_step)
    _check_no_callback(on_step)
    teacher_source = None if teacher is None else model_source(teacher)
    finetune_stage(model_source(model), teacher_source, options, Path(out), existing=existing(overwrite))
    return load_pipeline(out)


@with_options(options=TrainOptions)
def train(
    data: Any,
    options: TrainOptions,
    *,
    out: Source | None = None,
    overwrite: bool = False,
    on_step: OnStep | None = None,
) -> Any:
    """Train a denoiser from scratch; return a diffusers pipeline with EMA weights.

    data: training images, as a folder, parquet file, dataset id, 🤗 or torch data set, list of PIL images, or tensor
    (N, C, H, W) in [-1, 1]. out: folder for the pipeline, checkpoints, logs and previews; an interrupted call
    with `out` resumes. on_step: called after each optimizer step, as in `finetune`; not supported with `out`.
    Raises OptionError or DataError.
    """
    options = options.model_copy(update={"data": data_source(data)})
    if out is None:
        check_no_folder_options(options)
        return train_pipeline(options, on_step=on_step)
    _check_no_callback(on_step)
    train_stage(options, Path(out), existing=existing(overwrite))
    return load_pipeline(out)


def _check_no_callback(on_step: OnStep | None) -> None:
    if on_step is not None:
        raise OptionError("on_step: not supported with `out`; leave out one of them")


@with_options(options=ClassifierOptions)
def train_classifier(options: ClassifierOptions, *, out: Source, overwrite: bool = False) -> Results:
    """Train the digit classifier whose features `frechet_distance` compares, into a folder; return its accuracy."""
    return Results(classifier_stage(options, Path(out), existing=existing(overwrite)))
