"""Command `sample`: draw images of a pipeline, into a folder or in memory."""

from pathlib import Path
from typing import Any

from diffusers.models.modeling_utils import ModelMixin
from PIL import Image

from diffprune.compute.autocast import autocast_forward, resolve_precision
from diffprune.compute.cost import cost_of, latency_ms
from diffprune.compute.device import pick_device
from diffprune.compute.placement import placed
from diffprune.errors import ModelError, OptionError
from diffprune.options import SampleOptions
from diffprune.pipelines.denoiser_access import denoiser_of
from diffprune.pipelines.diffusion import process_of
from diffprune.pipelines.loading import load_model
from diffprune.pipelines.prompts import files_of
from diffprune.runs.distributed import process_state, shared_run
from diffprune.runs.run_record import Existing
from diffprune.sampling.image_folder import SamplingFacts, image_path, sample_in_memory, sample_to_folder


def sample_stage(source: str, options: SampleOptions, out: Path, *, existing: Existing = "refuse") -> dict[str, Any]:
    """Draw images of MODEL into a folder; return the cost and speed of the model. An interrupted run resumes."""
    return _draw(_load_pipeline(source), source, options, out, existing)


def sample_images(source: str, options: SampleOptions) -> list[Image.Image]:
    """Return the images that `sample_stage` would write, without sequences of steps, which need a folder."""
    if options.sequence:
        raise OptionError("sequence: needs an output folder; set `out`, or leave this out")
    pipeline = _load_pipeline(source)
    return sample_in_memory(denoiser_of(pipeline), process_of(pipeline), resolve_precision(options))


def _load_pipeline(source: str) -> Any:
    model = load_model(source)
    if model.pipeline is None:
        raise ModelError(
            f"{source} is a bare denoiser; sampling needs the noise schedule of a pipeline; give a pipeline"
        )
    return model.pipeline


def _draw(pipeline: Any, source: str, options: SampleOptions, out: Path, existing: Existing) -> dict[str, Any]:
    denoiser, process = denoiser_of(pipeline), process_of(pipeline)
    options = resolve_precision(options)
    with shared_run(
        out,
        "sample",
        options.resolved(),
        {"model": source, **files_of(options.prompts)},
        device=options.device,
        existing=existing,
        neutral=options.neutral,
    ) as run:
        complete = all(image_path(run.folder, i).exists() for i in range(options.num_images))
        if not (run.finished_before and complete):
            run.restored = run.finished_before
            sampled = sample_to_folder(denoiser, process, run.folder, options)
            if process_state(options.device).is_main_process and not run.finished_before:
                run.result = _result(denoiser, sampled, options)
        return run.result


def _result(denoiser: ModelMixin, sampled: SamplingFacts, options: SampleOptions) -> dict[str, Any]:
    device = pick_device(options.device)
    with placed(denoiser, device), autocast_forward(options, denoiser, device):
        latency = latency_ms(denoiser)
    rate = sampled.images_per_s
    return {
        "num_images": options.num_images,
        "evaluations_per_image": sampled.evaluations_per_image,
        **cost_of(denoiser).as_dict(),
        "latency_ms": round(latency, 3),
        "images_per_s": None if rate is None else round(rate, 3),
    }
