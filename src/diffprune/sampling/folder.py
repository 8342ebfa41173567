"""Sampling into a folder: exactly N files, resumable, written while the next batch computes."""

import io
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from diffprune.models.families import check_unconditional
from diffprune.models.loading import pick_device
from diffprune.models.state import borrowed
from diffprune.options import SampleOptions
from diffprune.processes import process_state
from diffprune.progress import progress
from diffprune.records import write_whole
from diffprune.sampling.grids import timestep_grid
from diffprune.sampling.sampler import draw_images


def image_path(folder: Path, index: int) -> Path:
    """Where image `index` of a sampled folder lies."""
    return folder / f"{index:06d}.png"


@dataclass(frozen=True)
class Sampled:
    """What a sampling run did. images_per_s is of this process, None where nothing was left to draw."""

    evaluations_per_image: int
    images_per_s: float | None


def sample_to_folder(denoiser: nn.Module, scheduler: Any, folder: Path, options: SampleOptions) -> Sampled:
    """Draw the images that are missing in `folder`, shared by all processes.

    The batches are cut by index alone, so that a resumed run computes the same batches as an undisturbed one.
    """
    check_unconditional(denoiser)
    state = process_state(options.device)
    device = state.device if state.num_processes > 1 else pick_device(options.device)
    grid = timestep_grid(options.grid, options.steps, scheduler.config.num_train_timesteps)
    batches = [
        range(start, min(start + options.batch_size, options.num))
        for start in range(0, options.num, options.batch_size)
    ]
    mine = batches[state.process_index :: state.num_processes]
    left = [batch for batch in mine if not all(image_path(folder, i).exists() for i in batch)]
    num_mine, num_left = sum(map(len, mine)), sum(map(len, left))
    with (
        borrowed(denoiser, device),
        progress("images", num_mine, "images", done=num_mine - num_left) as advance,
        ThreadPoolExecutor(max_workers=1) as writer,
    ):
        writing = None
        started = time.monotonic()
        for batch in left:
            images = draw_images(denoiser, scheduler, batch, options, device)
            if writing is not None:
                writing.result()
            writing = writer.submit(_write, images, batch, folder)
            advance(len(batch), "")
        if writing is not None:
            writing.result()
    rate = num_left / (time.monotonic() - started) if num_left else None
    return Sampled(len(grid), rate)


def _write(images: Tensor, indices: range, folder: Path) -> None:
    for image, index in zip(images.permute(0, 2, 3, 1).numpy(), indices, strict=True):
        path = image_path(folder, index)
        if path.exists():
            continue
        buffer = io.BytesIO()
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(buffer, format="PNG")
        write_whole(path, buffer.getvalue())
