"""Stage `evaluate`: compare images with a reference."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from diffprune.data.digits import SIZE
from diffprune.data.images import ImageSet, load_image, open_images
from diffprune.errors import DataError
from diffprune.evaluation.distances import frechet_distance
from diffprune.evaluation.features import embed_all, load_classifier
from diffprune.evaluation.paired import mse, pairs, ssim
from diffprune.models.loading import pick_device
from diffprune.options import EvaluateOptions
from diffprune.records import Existing, run_record
from diffprune.stages.calls import with_input_and_options

PAIRED = {"ssim": ssim, "mse": mse}


@with_input_and_options(EvaluateOptions)
def evaluate(images: str | Path, reference: str | Path, options: EvaluateOptions) -> dict[str, float]:
    """Each metric of `images` against `reference`, under its name.

    ssim and mse compare image i with image i of two folders; frechet_distance compares two sets, each a folder,
    a parquet file, a dataset id or `digits`. Raises DataError when images are missing, unreadable or unpaired.
    """
    return measure(str(images), str(reference), options)


def measure(images: str, reference: str, options: EvaluateOptions) -> dict[str, float]:
    """`evaluate` with its options as one value."""
    result: dict[str, float] = {}
    paired = [m for m in options.metrics if m in PAIRED]
    if paired:
        result |= _compare_pairs(Path(images), Path(reference), paired, options)
    if "frechet_distance" in options.metrics:
        result["frechet_distance"] = _compare_sets(images, reference, options)
    return {name: result[name] for name in options.metrics}


def evaluate_stage(
    images: str, reference: str, options: EvaluateOptions, out: Path | None, *, existing: Existing = "refuse"
) -> dict[str, Any]:
    """Compare IMAGES with REFERENCE; with `out`, leave the metrics in that folder's run.json."""
    if out is None:
        return dict(measure(images, reference, options))
    inputs = {"images": images, "reference": reference}
    with run_record(out, "evaluate", options.resolved(), inputs, existing=existing, neutral=options.neutral) as run:
        if not run.finished_before:
            run.result = dict(measure(images, reference, options))
        return run.result


def _compare_pairs(images: Path, reference: Path, metrics: Sequence[str], options: EvaluateOptions) -> dict[str, float]:
    matched = pairs(images, reference)
    device = pick_device(options.device)
    sums = dict.fromkeys(metrics, 0.0)
    for start in range(0, len(matched), options.batch_size):
        batch = matched[start : start + options.batch_size]
        first, second = ([_pixels(pair[side]) for pair in batch] for side in (0, 1))
        for (a, b), left, right in zip(batch, first, second, strict=True):
            if left.shape != right.shape:
                raise DataError(f"{a} is {tuple(left.shape)} and {b} is {tuple(right.shape)}; pairs need one shape")
        ours, theirs = torch.stack(first).to(device), torch.stack(second).to(device)
        for name in metrics:
            sums[name] += float(PAIRED[name](ours, theirs).double().sum())
    return {name: total / len(matched) for name, total in sums.items()}


def _compare_sets(images: str, reference: str, options: EvaluateOptions) -> float:
    device = pick_device(options.device)
    classifier = load_classifier()
    sets = [open_images(source, (SIZE, SIZE), 1) for source in (images, reference)]
    for some in sets:
        if len(some) < 2:
            raise DataError(f"{some.source} holds {len(some)} image; frechet_distance needs at least 2 (use hundreds)")
    ours, theirs = (embed_all(classifier, _batches(some, options.batch_size), device) for some in sets)
    return frechet_distance(ours, theirs)


def _batches(images: ImageSet, size: int) -> list[Tensor]:
    return [
        torch.stack([images[i] for i in range(start, min(start + size, len(images)))])
        for start in range(0, len(images), size)
    ]


def _pixels(path: Path) -> Tensor:
    image = load_image(path)
    pixels: Tensor = pil_to_tensor(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    return pixels.float() / 255
