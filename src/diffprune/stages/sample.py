"""Stage `sample`: draw images into a folder."""

from pathlib import Path
from typing import Any

from diffusers.models.modeling_utils import ModelMixin

from diffprune.errors import FolderError, ModelError
from diffprune.models.cost import cost_of, latency_ms
from diffprune.models.loading import denoiser_of, load_model, pick_device
from diffprune.models.process import process_of
from diffprune.models.state import borrowed
from diffprune.options import SampleOptions
from diffprune.processes import process_state, shared_run
from diffprune.sampling.folder import Sampled, image_path, sample_to_folder
from diffprune.stages.calls import with_input_and_options


@with_input_and_options(SampleOptions)
def sample(model: Any, out: str | Path, options: SampleOptions) -> list[Path]:
    """Draw images of a pipeline into the folder `out`; returns their paths, by image index.

    Image i depends on the seed and on i alone. Images that are there already are kept, so the folder must
    hold nothing but images of the same model and options; the command line checks that.
    """
    folder = Path(out)
    if folder.is_file():
        raise FolderError(f"{folder} is a file, expected a folder to write to")
    sample_to_folder(denoiser_of(model), process_of(model), folder, options)
    return [image_path(folder, i) for i in range(options.num_images)]


def sample_stage(source: str, options: SampleOptions, out: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Draw images of MODEL into a folder, resumable; the result names what the model costs."""
    model = load_model(source)
    if model.pipeline is None:
        raise ModelError(f"{source} is not a pipeline; sampling needs one, for its noise schedule")
    process = process_of(model.pipeline)
    with shared_run(
        out, "sample", options.resolved(), {"model": source}, device=options.device, overwrite=overwrite
    ) as run:
        if not run.finished_before:
            sampled = sample_to_folder(model.denoiser, process, run.folder, options)
            if process_state(options.device).is_main_process:
                run.result = _result(model.denoiser, sampled, options)
        return run.result


def _result(denoiser: ModelMixin, sampled: Sampled, options: SampleOptions) -> dict[str, Any]:
    with borrowed(denoiser, pick_device(options.device)):
        latency = latency_ms(denoiser)
    rate = sampled.images_per_s
    return {
        "num_images": options.num_images,
        "evaluations_per_image": sampled.evaluations_per_image,
        **cost_of(denoiser).as_dict(),
        "latency_ms": round(latency, 3),
        "images_per_s": None if rate is None else round(rate, 3),
    }
