"""Stages `train` and `finetune`: from scratch, or from a pruned model."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import DDPMPipeline, DDPMScheduler
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import make_grid

from diffprune.artifact.pruned_classes import stock_class
from diffprune.calibration.calibration_set import GENERATED, Calibration, images_for
from diffprune.calibration.latent_cache import LATENTS, LatentCache
from diffprune.calibration.text_latents import training_latents
from diffprune.calibration.texts import Texts, open_texts
from diffprune.compute.autocast import resolve_precision
from diffprune.compute.device import pick_device
from diffprune.compute.placement import restored_devices
from diffprune.data.images import ImageSet, without_corrupt
from diffprune.errors import ModelError, OptionError
from diffprune.options import FinetuneOptions, PromptOptions, SampleOptions, TrainingOptions, TrainOptions
from diffprune.pipelines.architecture_configs import architecture
from diffprune.pipelines.denoiser_access import denoiser_of, with_denoiser
from diffprune.pipelines.diffusion import DiffusionProcess, process_of
from diffprune.pipelines.loading import load_model
from diffprune.pipelines.model_card import copy_model_card
from diffprune.pipelines.prompts import files_of
from diffprune.pipelines.stored_dtype import in_stored_dtype
from diffprune.pruning.surgery import reset_weights
from diffprune.runs.distributed import on_main_process, process_state, shared_run
from diffprune.runs.run_record import Existing
from diffprune.sampling.sampler import draw_images
from diffprune.sampling.scheduler_sampling import OWN
from diffprune.stages.plan_stage import latent_cache_in
from diffprune.stages.prune_stage import publish
from diffprune.training.batches import check_conditions
from diffprune.training.checkpoints import CHECKPOINTS
from diffprune.training.draws import sampling_of
from diffprune.training.fsdp import check_sharding
from diffprune.training.history import DivergenceError
from diffprune.training.step_callback import OnStep
from diffprune.training.trainer import Preview, result_step, train_denoiser

NUM_PREVIEWED = 16
INTERFACE = (
    "in_channels", "out_channels", "cross_attention_dim", "addition_embed_type", "num_class_embeds",
    "joint_attention_dim", "pooled_projection_dim", "caption_channels",
)  # fmt: skip
"""Entries of configs that say what a denoiser is called with."""


def finetune(model: Any, teacher: Any, options: FinetuneOptions, *, on_step: OnStep | None = None) -> Any:
    """Recover a pruned pipeline; returns a new one with EMA weights, `model` is untouched.

    teacher: the original pipeline (or denoiser), whose output is distilled; None for the noise error alone.
    on_step: called as `on_step(step, facts)` on the main process after each optimizer step, with the loss, the learning
    rate and `facts.ema_denoiser()`.
    Nothing is saved on the way.
    Raises OptionError, ModelError or DataError before any work when something is wrong or missing.
    """
    process = process_of(model)
    _check_teacher_options(options, teacher)
    if teacher is not None:
        _check_teacher(denoiser_of(model), denoiser_of(teacher))
    images = _latents(process, open_training_data(process, options), options)
    trained, _ = train_denoiser(
        denoiser_of(model), process, images, options,
        teacher=None if teacher is None else denoiser_of(teacher), on_step=on_step,
    )  # fmt: skip
    return with_denoiser(model, trained)


def train(options: TrainOptions, *, on_step: OnStep | None = None) -> Any:
    """Train a denoiser from scratch; returns a diffusers pipeline with EMA weights.

    on_step: called as `on_step(step, facts)` on the main process after each optimizer step, with the loss, the learning
    rate and `facts.ema_denoiser()`.
    """
    pipeline = untrained_pipeline(options)
    images = _images(process_of(pipeline), options)
    trained, _ = train_denoiser(pipeline.unet, process_of(pipeline), images, options, on_step=on_step)
    return with_denoiser(pipeline, trained)


def train_stage(options: TrainOptions, out: Path, *, existing: Existing = "refuse") -> dict[str, Any]:
    """Train from scratch into a pipeline folder, resumable."""
    options = resolve_precision(options)
    run_of_it = shared_run(
        out,
        "train",
        options.resolved(),
        {"data": options.data},
        device=options.device,
        existing=existing,
        neutral=options.neutral,
    )
    with _naming_what_is_left(), run_of_it as run:
        if not run.finished_before:
            pipeline = untrained_pipeline(options)
            run.result = _train_into(run.folder, pipeline, _images(process_of(pipeline), options), options)
        return run.result


def finetune_stage(
    source: str, teacher: str | None, options: FinetuneOptions, out: Path, *, existing: Existing = "refuse"
) -> dict[str, Any]:
    """Finetune MODEL into a pipeline folder, resumable. teacher: the original MODEL, for distillation."""
    options = resolve_precision(options)
    _check_teacher_options(options, teacher)
    model = load_model(source)
    if model.pipeline is None:
        raise ModelError(f"{source} is not a pipeline; finetuning needs one, for its noise schedule")
    process = process_of(model.pipeline)
    learnt_from = open_training_data(process, options)
    original = None if teacher is None else load_model(teacher).denoiser
    if original is not None:
        _check_teacher(model.denoiser, original)
    inputs = {"model": source, "teacher": teacher, "data": options.data, **files_of(options.prompts)}
    run_of_it = shared_run(
        out, "finetune", options.resolved(), inputs, device=options.device, existing=existing, neutral=options.neutral
    )
    with _naming_what_is_left(), run_of_it as run:
        if not run.finished_before:
            images = _latents(process, learnt_from, options, latent_cache_in(run.folder, inputs))
            run.result = _train_into(run.folder, model.pipeline, images, options, teacher=original, source=source)
            if process_state(options.device).is_main_process:
                copy_model_card(source, run.folder, _paragraph(options, teacher, run.result))
        return run.result


@contextmanager
def _naming_what_is_left() -> Iterator[None]:
    """Tell of a training that has diverged where its last good state lies, if that is still there."""
    try:
        yield
    except DivergenceError as error:
        if error.checkpoint is None or not error.checkpoint.exists():
            raise
        text = f"{error}; the last good state is {error.checkpoint}"
        if (error.checkpoint / "model.safetensors").exists():
            text += ", with the weights in model.safetensors"
        raise ModelError(text) from error


def _check_teacher_options(options: FinetuneOptions, teacher: Any) -> None:
    """Raise OptionError for options of a teacher without one."""
    of_teacher = sorted({"teacher_weight", "feature_weight", "teacher_dtype"} & options.model_fields_set)
    if teacher is None and of_teacher:
        raise OptionError(f"{', '.join(of_teacher)}: needs a teacher")


def _check_teacher(student: ModelMixin, teacher: ModelMixin) -> None:
    """Raise OptionError for a teacher that is called with other inputs than its student."""

    def interface(model: ModelMixin) -> dict[str, Any]:
        config: Any = model.config
        return {"class": stock_class(model).__name__, **{name: config.get(name) for name in INTERFACE}}

    ours, theirs = interface(student), interface(teacher)
    wrong = [f"{name} {theirs[name]} instead of {ours[name]}" for name in ours if ours[name] != theirs[name]]
    if wrong:
        raise OptionError(f"teacher: it is another kind of model than the student ({', '.join(wrong)})")


def _train_into(
    folder: Path,
    pipeline: Any,
    images: ImageSet | Calibration,
    options: TrainingOptions,
    *,
    teacher: nn.Module | None = None,
    source: str | None = None,
) -> dict[str, Any]:
    """Train into a folder. source: MODEL whose dtypes the result is saved in, None for float32."""
    trained, history = train_denoiser(
        denoiser_of(pipeline), process_of(pipeline), images, options,
        folder=folder, teacher=teacher, preview=_preview(pipeline, options),
    )  # fmt: skip
    if process_state(options.device).is_main_process:
        whole = with_denoiser(pipeline, trained)
        publish(whole if source is None else in_stored_dtype(whole, source), folder)
        for name in (CHECKPOINTS, LATENTS):
            shutil.rmtree(folder / name, ignore_errors=True)
    read: dict[str, Any] = {}
    if isinstance(images, ImageSet):
        read = {"num_corrupt": images.num_corrupt, "preprocessing": images.preprocessing.resolved()}
    return {
        "num_images": len(images),
        "timestep_sampling": sampling_of(process_of(pipeline).scheduler, options),
        **read,
        "final_loss": history[-1]["loss"],
        "result_step": result_step(history),
        "history": history,
    }


def untrained_pipeline(options: TrainOptions) -> Any:
    """The pipeline that training from scratch begins with, its weights drawn by seed."""
    empty: Any = architecture(options.architecture)
    with torch.random.fork_rng():
        denoiser = type(empty).from_config(empty.config)  # with its buffers, as tables of positions
    reset_weights(denoiser, options.seed)
    scheduler = DDPMScheduler(
        num_train_timesteps=options.num_train_timesteps,
        beta_schedule=options.beta_schedule,
        prediction_type=options.prediction_type,
    )
    return DDPMPipeline(cast(Any, denoiser), scheduler)


def open_training_data(process: DiffusionProcess, options: FinetuneOptions) -> ImageSet | Texts:
    """What a model is finetuned on, as far as it can be looked at without work."""
    check_sharding(options)
    if options.data is None:
        raise OptionError(
            "data: missing; give a folder, a parquet file, a dataset id or `digits`; for text-conditioned models with "
            "captions, or `generated`"
        )
    if process.pipeline is None:
        if options.prompts is not None or options.data == GENERATED:
            raise OptionError("prompts and data `generated` serve text-conditioned models; give images")
        return _images(process, options)
    if options.class_dropout:
        raise OptionError("class_dropout: the model is conditioned on text; leave it out")
    if options.preview_every and options.prompts is None:
        raise OptionError("prompts: missing; previews of a text-conditioned model are drawn by a file of prompts")
    if options.data == GENERATED:
        return open_texts(process, options, options.num_generated)
    return open_texts(process, options, options.steps * options.batch_size, at_most=True)


def _latents(
    process: DiffusionProcess, source: ImageSet | Texts, options: FinetuneOptions, store: LatentCache | None = None
) -> ImageSet | Calibration:
    """What the training loop takes; of several processes the first one makes the latents that all read."""
    if isinstance(source, ImageSet):
        return source
    if store is not None and process_state(options.device).num_processes > 1:

        def make() -> None:
            training_latents(process, source, options, pick_device(options.device), store)

        on_main_process(make, options.device)
    return training_latents(process, source, options, pick_device(options.device), store)


def _images(process: DiffusionProcess, options: TrainingOptions) -> ImageSet:
    if options.data is None:
        raise OptionError("data: missing; give a folder, a parquet file, a dataset id or `digits`")
    images = images_for(process, options.data, options)
    check_conditions(process, images, options)
    return without_corrupt(images, num_workers=options.num_workers) if options.on_corrupt == "skip" else images


def _preview(pipeline: Any, options: TrainingOptions) -> Preview:
    """Draws a grid of images with the model's own scheduler; of a class-conditional model, its classes in turn."""
    process = process_of(pipeline)
    steps = min(options.preview_steps, process.num_timesteps)
    drawing = SampleOptions(num=NUM_PREVIEWED, steps=steps, scheduler=OWN, seed=options.seed)
    if isinstance(options, FinetuneOptions):
        told = options.model_dump(include=set(PromptOptions.model_fields))
        drawing = drawing.model_copy(update=told)

    def draw(denoiser: nn.Module, path: Path) -> None:
        device = next(denoiser.parameters()).device
        with restored_devices([c for c in pipeline.components.values() if isinstance(c, nn.Module)]):
            images = draw_images(denoiser, process, range(NUM_PREVIEWED), drawing, device)
        path.parent.mkdir(parents=True, exist_ok=True)
        to_pil_image(make_grid(images, nrow=4)).save(path)

    return draw


def _paragraph(options: FinetuneOptions, teacher: str | None, result: dict[str, Any]) -> str:
    taught = f", with {options.teacher_weight:g} of the loss from the output of `{teacher}`" if teacher else ""
    done = result["history"][-1]["step"]
    return (
        f"## Finetuned with diffprune\n\nFinetuned for {done:.0f} steps of {options.batch_size} images from "
        f"`{options.data}`{taught}; these are the EMA weights of step {result['result_step']}."
    )
