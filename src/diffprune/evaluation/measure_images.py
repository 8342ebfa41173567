"""Compute metrics of images, after all inputs are checked.

Most metrics compare with a reference; inception_score and clip_score take none.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from diffprune.compute.device import pick_device
from diffprune.data.digits import SIZE
from diffprune.data.images import ImageSet, load_image, open_images
from diffprune.errors import DataError, OptionError
from diffprune.evaluation.clip_score import load_clip, prompted_images
from diffprune.evaluation.digit_classifier import embed_all, load_classifier
from diffprune.evaluation.frechet import frechet_distance
from diffprune.evaluation.image_pairs import files_by_index, load_pairs, matched_pairs
from diffprune.evaluation.inception_evaluation import (
    INCEPTION_METRICS,
    NUM_CORRUPT,
    Computation,
    prepare_inception_metrics,
)
from diffprune.evaluation.lpips import load_lpips
from diffprune.evaluation.minimum_images import check_num_images
from diffprune.evaluation.paired_metrics import mse, psnr, ssim
from diffprune.evaluation.protocol import MetricProtocols, MetricValues
from diffprune.options import LONE_METRICS, PAIRED_METRICS, EvaluateOptions
from diffprune.options.in_memory import InMemory
from diffprune.pipelines.prompts import read_prompts
from diffprune.runs.distributed import all_reduce_sum, on_all_ranks, process_state, rank_shard
from diffprune.runs.progress import progress

T = TypeVar("T")

PLAIN: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"ssim": ssim, "mse": mse, "psnr": psnr}


def measure(images: str, reference: str | None, options: EvaluateOptions) -> dict[str, Any]:
    """Return the value of each metric; everything that can be wrong with its inputs is found first."""
    chosen = options.metrics
    process_state(options.device)  # joins the process group first, which assigns one device to each rank
    needing = [metric for metric in chosen if metric not in LONE_METRICS]
    if needing and reference is None:
        raise OptionError(f"{', '.join(needing)} compare with a reference; give REFERENCE")
    kinds = (
        ([m for m in chosen if m in PAIRED_METRICS], _pairs),
        ([m for m in chosen if m == "frechet_distance"], _digits),
        ([m for m in chosen if m in INCEPTION_METRICS], prepare_inception_metrics),
        ([m for m in chosen if m == "clip_score"], _prompts),
    )
    checked = [prepare(images, reference or "", wanted, options) for wanted, prepare in kinds if wanted]
    numbers: MetricValues = {}
    protocols: MetricProtocols = {}
    for work in checked:
        values, described = work()
        numbers |= values
        protocols |= described
    order = {name: number for metric in chosen for name, number in numbers.items() if _belongs(name, metric)}
    order |= {name: number for name, number in numbers.items() if name == NUM_CORRUPT}
    return {**order, "protocol": {m: protocols[m] for m in chosen if m in protocols}} if protocols else {**order}


def _belongs(name: str, metric: str) -> bool:
    return name in (metric, f"{metric}_mean", f"{metric}_std")


def _pairs(images: str, reference: str, metrics: Sequence[str], options: EvaluateOptions) -> Computation:
    if not isinstance(reference, InMemory) and not Path(reference).is_dir():
        verb, needs = ("compares", "needs") if len(metrics) == 1 else ("compare", "need")
        raise DataError(
            f"{' and '.join(metrics)} {verb} image pairs and {needs} a folder of images, got {reference}; "
            "to compare with a data set, set metrics to frechet_distance"
        )
    matched = matched_pairs(images, reference, options.num)
    device = pick_device(options.device)
    functions = {name: PLAIN[name] for name in metrics if name in PLAIN}
    protocols: MetricProtocols = {}
    if "lpips" in metrics:
        perceptual = load_lpips(options.lpips_network, options.lpips_weights, device)
        functions["lpips"] = perceptual.distance
        protocols["lpips"] = perceptual.protocol(len(matched))

    def work() -> tuple[MetricValues, MetricProtocols]:
        def shard_sums() -> Tensor:
            sums = torch.zeros(len(functions), dtype=torch.float64)
            for batch in rank_shard(_cut(matched, options.batch_size), options.device):
                ours, theirs = (side.to(device) for side in load_pairs(batch))
                for index, function in enumerate(functions.values()):
                    sums[index] += float(function(ours, theirs).double().sum())
            return sums

        totals = all_reduce_sum(on_all_ranks(shard_sums, options.device), options.device)
        return {name: float(total) / len(matched) for name, total in zip(functions, totals, strict=True)}, protocols

    return work


def _digits(images: str, reference: str, metrics: Sequence[str], options: EvaluateOptions) -> Computation:
    device = pick_device(options.device)
    ours, theirs = (open_images(source, (SIZE, SIZE), 1) for source in (images, reference))
    num = _first(ours, options.num)
    check_num_images(images, num, metrics, options, reference=False)
    check_num_images(reference, len(theirs), metrics, options, reference=True)

    def work() -> tuple[MetricValues, MetricProtocols]:
        classifier = load_classifier()
        sides = ((ours, num), (theirs, len(theirs)))
        first, second = (embed_all(classifier, _batches(some, n, options.batch_size), device) for some, n in sides)
        return {"frechet_distance": frechet_distance(first, second)}, {}

    return work


def _prompts(images: str, reference: str, metrics: Sequence[str], options: EvaluateOptions) -> Computation:
    assert options.prompts is not None
    texts = [prompt.text for prompt in read_prompts(options.prompts)]
    matched = prompted_images(files_by_index(images), texts, options.num)
    clip = load_clip(options.clip_model, pick_device(options.device))

    def work() -> tuple[MetricValues, MetricProtocols]:
        batches = rank_shard(_cut(matched, options.batch_size), options.device)

        def shard_sum() -> Tensor:
            total = torch.zeros(1, dtype=torch.float64)
            with progress("images and prompts", sum(map(len, batches)), "images") as advance:
                for batch in batches:
                    scores = clip.score([load_image(path) for path, _ in batch], [prompt for _, prompt in batch])
                    total += float(scores.double().sum())
                    advance(len(batch), "")
            return total

        total = float(all_reduce_sum(on_all_ranks(shard_sum, options.device), options.device))
        return {"clip_score": total / len(matched)}, {"clip_score": clip.protocol(len(matched))}

    return work


def _cut(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _first(images: ImageSet, num: int | None) -> int:
    if num is not None and num > len(images):
        raise DataError(
            f"{images.source} holds {len(images)} images, but num is {num}; set num to at most {len(images)}"
        )
    return num or len(images)


def _batches(images: ImageSet, num: int, size: int) -> list[Tensor]:
    return [torch.stack([images[i] for i in range(start, min(start + size, num))]) for start in range(0, num, size)]
