"""Sample N images, into a folder or in memory; files are written while the next batch computes."""

import io
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from diffprune.compute.autocast import autocast_forward
from diffprune.compute.device import pick_device
from diffprune.compute.placement import placed
from diffprune.data.images import SEQUENCES
from diffprune.options import SampleOptions
from diffprune.pipelines.diffusion import DiffusionProcess, is_flow
from diffprune.runs.atomic_files import atomic_write
from diffprune.runs.distributed import process_state
from diffprune.runs.progress import progress
from diffprune.sampling.pipeline_sampling import check_prompts
from diffprune.sampling.sampler import conditions_of, draw_images
from diffprune.sampling.scheduler_sampling import OWN, check_steps, scheduler_named
from diffprune.sampling.timestep_grids import timestep_grid

FRAME_MS, LAST_FRAME_MS = 60, 1500


def image_path(folder: Path, index: int) -> Path:
    """Return the path of image `index` in a folder of samples."""
    return folder / f"{index:06d}.png"


@dataclass(frozen=True)
class SamplingFacts:
    """Facts of a sampling run. images_per_s: of this rank; None where all images existed."""

    evaluations_per_image: int
    images_per_s: float | None


def sample_to_folder(
    denoiser: nn.Module, process: DiffusionProcess, folder: Path, options: SampleOptions
) -> SamplingFacts:
    """Draw the images missing in `folder`, sharded over ranks.

    Batches depend on the indices alone, so that a resumed run computes the same batches as an uninterrupted one.
    """
    state = process_state(options.device)
    device = state.device if state.num_processes > 1 else pick_device(options.device)
    evaluations = num_evaluations(process, options)
    batches = _batches(options)
    shard = batches[state.process_index :: state.num_processes]
    missing = [batch for batch in shard if not all(image_path(folder, i).exists() for i in batch)]
    num_images, num_missing = sum(map(len, shard)), sum(map(len, missing))
    with (
        placed(denoiser, device),
        autocast_forward(options, denoiser, device),
        progress("images", num_images, "images", done=num_images - num_missing) as advance,
        ThreadPoolExecutor(max_workers=1) as writer,
    ):
        writing = None
        started = time.monotonic()
        for batch in missing:
            frames: list[Tensor] = []
            frame = frames.append if options.sequence or process.pipeline is not None else None
            images = draw_images(denoiser, process, batch, options, device, frame)
            if writing is not None:
                writing.result()
            writing = writer.submit(_write, images, frames, batch, folder)
            advance(len(batch), "")
        if writing is not None:
            writing.result()
    rate = num_missing / (time.monotonic() - started) if num_missing else None
    return SamplingFacts(evaluations, rate)


def sample_in_memory(denoiser: nn.Module, process: DiffusionProcess, options: SampleOptions) -> list[Image.Image]:
    """Draw all images on this rank and return them, equal to those of `sample_to_folder`."""
    device = pick_device(options.device)
    num_evaluations(process, options)
    images: list[Image.Image] = []
    with (
        placed(denoiser, device),
        autocast_forward(options, denoiser, device),
        progress("images", options.num_images, "images") as advance,
    ):
        for batch in _batches(options):
            images += map(_to_pil, draw_images(denoiser, process, batch, options, device))
            advance(len(batch), "")
    return images


def num_evaluations(process: DiffusionProcess, options: SampleOptions) -> int:
    """Return the denoising steps per image.

    Raises OptionError or ModelError for steps, a scheduler or classes that the model does not support.
    """
    num_timesteps, scheduler = process.num_timesteps, process.scheduler
    if process.pipeline is not None:
        check_prompts(process.pipeline, options)
        if not is_flow(scheduler):  # the pipeline's call spaces the timesteps of flows
            check_steps(scheduler_named(options.scheduler or OWN, scheduler), options.steps, num_timesteps)
        return options.steps
    conditions_of(process, [0], options, torch.device("cpu"))
    if options.scheduler is None:
        return len(timestep_grid(options.grid, options.steps, num_timesteps))
    chosen = scheduler_named(options.scheduler, scheduler)
    check_steps(chosen, options.steps, num_timesteps)
    return len(chosen.timesteps)


def _batches(options: SampleOptions) -> list[range]:
    """Return the image indices of each batch."""
    return [
        range(start, min(start + options.batch_size, options.num_images))
        for start in range(0, options.num_images, options.batch_size)
    ]


def _write(images: Tensor, frames: list[Tensor], indices: range, folder: Path) -> None:
    for position, index in enumerate(indices):
        path = image_path(folder, index)
        if path.exists():
            continue
        if frames:
            _write_sequence([_to_pil(step[position]) for step in frames], folder / SEQUENCES, index)
        _write_png(_to_pil(images[position]), path)


def _write_sequence(frames: list[Image.Image], folder: Path, index: int) -> None:
    """Write the frames of one image as numbered PNGs, and as a GIF that pauses on the last frame."""
    for step, frame in enumerate(frames):
        _write_png(frame, folder / f"{index:06d}" / f"{step:04d}.png")
    buffer = io.BytesIO()
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    first, *others = [frame.convert("RGB") for frame in frames]
    first.save(buffer, format="GIF", save_all=True, append_images=others, duration=durations, loop=0)
    atomic_write(folder / f"{index:06d}.gif", buffer.getvalue())


def _to_pil(pixels: Tensor) -> Image.Image:
    values = pixels.permute(1, 2, 0).numpy()
    return Image.fromarray(values.squeeze(-1) if values.shape[-1] == 1 else values)


def _write_png(image: Image.Image, path: Path) -> None:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    atomic_write(path, buffer.getvalue())
