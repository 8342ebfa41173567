"""Train a pipeline into the output folder of a stage: previews on the way, the pipeline at the end."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import make_grid

from diffprune.calibration.calibration_set import Calibration
from diffprune.calibration.latent_cache import LATENTS
from diffprune.compute.placement import restored_devices
from diffprune.data.images import ImageSet
from diffprune.errors import ModelError
from diffprune.options import FinetuneOptions, PromptOptions, SampleOptions, TrainingOptions
from diffprune.pipelines.denoiser_access import denoiser_of, with_denoiser
from diffprune.pipelines.diffusion import DiffusionProcess
from diffprune.pipelines.saving import save_into
from diffprune.pipelines.stored_dtype import in_stored_dtype
from diffprune.runs.distributed import process_state
from diffprune.sampling.sampler import draw_images
from diffprune.sampling.scheduler_sampling import OWN
from diffprune.training.checkpoints import CHECKPOINTS
from diffprune.training.draws import sampling_of
from diffprune.training.history import DivergenceError
from diffprune.training.trainer import Preview, result_step, train_denoiser

NUM_PREVIEW_IMAGES = 16


def train_into_folder(
    folder: Path,
    pipeline: Any,
    process: DiffusionProcess,
    images: ImageSet | Calibration,
    options: TrainingOptions,
    *,
    teacher: nn.Module | None = None,
    source: str | None = None,
) -> dict[str, Any]:
    """Train a pipeline, save it into the folder, and return the result for `run.json`.

    Args:
        folder: the output folder; an interrupted run resumes from its checkpoints.
        pipeline: the pipeline to train; it is not changed.
        process: its diffusion process.
        images: the training images, or latents with their conditioning.
        options: with `auto` resolved.
        teacher: the original denoiser, whose output is distilled; None for the noise error alone.
        source: MODEL whose dtypes the result is saved in; None for float32.

    Raises ModelError when training diverges; the message names the last checkpoint before that.
    """
    with _naming_last_checkpoint():
        trained, history = train_denoiser(
            denoiser_of(pipeline), process, images, options,
            folder=folder, teacher=teacher, preview=_preview(pipeline, process, options),
        )  # fmt: skip
    if process_state(options.device).is_main_process:
        whole = with_denoiser(pipeline, trained)
        save_into(whole if source is None else in_stored_dtype(whole, source), folder)
        for name in (CHECKPOINTS, LATENTS):
            shutil.rmtree(folder / name, ignore_errors=True)
    of_images: dict[str, Any] = {}
    if isinstance(images, ImageSet):
        of_images = {"num_corrupt": images.num_corrupt, "preprocessing": images.preprocessing.resolved()}
    return {
        "num_images": len(images),
        "timestep_sampling": sampling_of(process.scheduler, options),
        **of_images,
        "final_loss": history[-1]["loss"],
        "result_step": result_step(history),
        "history": history,
    }


@contextmanager
def _naming_last_checkpoint() -> Iterator[None]:
    """Add the last checkpoint before a divergence to the error, if the checkpoint exists."""
    try:
        yield
    except DivergenceError as error:
        if error.checkpoint is None or not error.checkpoint.exists():
            raise
        text = f"{error}; the last good state is {error.checkpoint}"
        if (error.checkpoint / "model.safetensors").exists():
            text += ", with the weights in model.safetensors"
        raise ModelError(text) from error


def _preview(pipeline: Any, process: DiffusionProcess, options: TrainingOptions) -> Preview:
    """Return a function that draws a grid of images with the scheduler of the pipeline; of classes, each in turn."""
    steps = min(options.preview_steps, process.num_timesteps)
    drawing = SampleOptions(num=NUM_PREVIEW_IMAGES, steps=steps, scheduler=OWN, seed=options.seed)
    if isinstance(options, FinetuneOptions):
        drawing = drawing.model_copy(update=options.model_dump(include={*PromptOptions.model_fields}))

    def draw(denoiser: nn.Module, path: Path) -> None:
        device = next(denoiser.parameters()).device
        with restored_devices([c for c in pipeline.components.values() if isinstance(c, nn.Module)]):
            images = draw_images(denoiser, process, range(NUM_PREVIEW_IMAGES), drawing, device)
        path.parent.mkdir(parents=True, exist_ok=True)
        to_pil_image(make_grid(images, nrow=4)).save(path)

    return draw
