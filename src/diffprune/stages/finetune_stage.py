"""Command `finetune`: recover a pruned model by training."""

from pathlib import Path
from typing import Any

from diffusers.models.modeling_utils import ModelMixin

from diffprune.artifact.pruned_classes import stock_class
from diffprune.calibration.stage_caches import latents_in
from diffprune.compute.autocast import resolve_precision
from diffprune.errors import ModelError, OptionError
from diffprune.options import FinetuneOptions
from diffprune.pipelines.denoiser_access import denoiser_of, with_denoiser
from diffprune.pipelines.diffusion import process_of
from diffprune.pipelines.loading import load_model
from diffprune.pipelines.model_card import copy_model_card
from diffprune.pipelines.prompts import files_of
from diffprune.runs.distributed import process_state, shared_run
from diffprune.runs.run_record import Existing
from diffprune.training.step_callback import OnStep
from diffprune.training.train_into_folder import train_into_folder
from diffprune.training.trainer import train_denoiser
from diffprune.training.training_data import load_training_data, open_training_data

OF_TEACHER = ("feature_weight", "teacher_dtype", "teacher_weight")
"""Options that are only valid with a teacher."""

INTERFACE = (
    "in_channels", "out_channels", "cross_attention_dim", "addition_embed_type", "num_class_embeds",
    "joint_attention_dim", "pooled_projection_dim", "caption_channels",
)  # fmt: skip
"""Config entries that define the inputs of a denoiser."""


def finetune_pipeline(model: Any, teacher: Any, options: FinetuneOptions, *, on_step: OnStep | None = None) -> Any:
    """Finetune in memory; return a new pipeline with EMA weights.

    teacher: the original pipeline or denoiser, whose output is distilled; None trains without distillation.
    on_step: called on the main process after each optimizer step.
    """
    _check_teacher_options(options, teacher)
    process = process_of(model)
    if teacher is not None:
        _check_teacher(denoiser_of(model), denoiser_of(teacher))
    data = load_training_data(process, open_training_data(process, options), options)
    trained, _ = train_denoiser(
        denoiser_of(model), process, data, options,
        teacher=None if teacher is None else denoiser_of(teacher), on_step=on_step,
    )  # fmt: skip
    return with_denoiser(model, trained)


def finetune_stage(
    source: str, teacher: str | None, options: FinetuneOptions, out: Path, *, existing: Existing = "refuse"
) -> dict[str, Any]:
    """Finetune MODEL into a pipeline folder; an interrupted run resumes.

    teacher: the original MODEL, whose output is distilled; None trains without distillation.
    """
    options = resolve_precision(options)
    _check_teacher_options(options, teacher)
    model = load_model(source)
    if model.pipeline is None:
        raise ModelError(
            f"{source} is a bare denoiser; finetuning needs the noise schedule of a pipeline; give a pipeline"
        )
    process = process_of(model.pipeline)
    opened = open_training_data(process, options)
    original = None if teacher is None else load_model(teacher).denoiser
    if original is not None:
        _check_teacher(model.denoiser, original)
    inputs = {"model": source, "teacher": teacher, "data": options.data, **files_of(options.prompts)}
    with shared_run(
        out, "finetune", options.resolved(), inputs, device=options.device, existing=existing, neutral=options.neutral
    ) as run:
        if not run.finished_before:
            data = load_training_data(process, opened, options, latents_in(run.folder, run.inputs))
            run.result = train_into_folder(
                run.folder, model.pipeline, process, data, options, teacher=original, source=source
            )
            if process_state(options.device).is_main_process:
                copy_model_card(source, run.folder, _paragraph(options, teacher, run.result))
        return run.result


def _check_teacher_options(options: FinetuneOptions, teacher: Any) -> None:
    """Raise OptionError for distillation options without a teacher."""
    chosen = [name for name in OF_TEACHER if name in options.model_fields_set]
    if teacher is None and chosen:
        raise OptionError(f"{', '.join(chosen)}: needs a teacher; give one, or leave this out")


def _check_teacher(student: ModelMixin, teacher: ModelMixin) -> None:
    """Raise OptionError if the teacher and the student differ in class or inputs."""

    def interface(model: ModelMixin) -> dict[str, Any]:
        config: Any = model.config
        return {"class": stock_class(model).__name__, **{name: config.get(name) for name in INTERFACE}}

    expected, actual = interface(student), interface(teacher)
    wrong = [
        f"{name}: got {actual[name]}, expected {expected[name]}" for name in expected if expected[name] != actual[name]
    ]
    if wrong:
        raise OptionError(
            f"teacher: its class or inputs differ from the student's ({'; '.join(wrong)}); give the unpruned model"
        )


def _paragraph(options: FinetuneOptions, teacher: str | None, result: dict[str, Any]) -> str:
    distilled = f", with {options.teacher_weight:g} of the loss from the output of `{teacher}`" if teacher else ""
    num_steps = result["history"][-1]["step"]
    return (
        f"## Finetuned with diffprune\n\nFinetuned for {num_steps:.0f} steps of {options.batch_size} images from "
        f"`{options.data}`{distilled}; these are the EMA weights of step {result['result_step']}. "
        "The `run.json` of stage `finetune` holds the options, versions and losses."
    )
