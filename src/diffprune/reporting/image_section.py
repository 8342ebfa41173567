"""Build the image section of the report: a gallery over all models, and the worst and median pair of each."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffprune.evaluation.image_pairs import files_by_index
from diffprune.reporting.run_summary import RunSummary, SampledModel
from diffprune.reporting.sample_images import PairScores, embed_image, pair_scores, shown_indices

PAIR_SIDE = 128
"""Longer side in CSS pixels of the images of the worst and median pair; enlarged ones may exceed it."""


def image_section(summary: RunSummary) -> dict[str, Any] | None:
    """Return what the template shows: `models`, `gallery` and `pairs`; None where no images were sampled.

    A model that images were not sampled from the original's noise for is shown without SSIM.
    """
    if not summary.models or summary.original is None:
        return None
    original = summary.original
    models = [original, *(model for model in summary.models if model is not original)]
    files = [files_by_index(model.images) for model in models]
    scores = [
        pair_scores(model.images, original.images) if model.paired and model is not original else None
        for model in models
    ]
    return {
        "models": [
            {"name": model.name, "worst": some and some.worst, "median": some and some.median}
            for model, some in zip(models, scores, strict=True)
        ],
        "gallery": [
            {"index": index, "images": [_tile(*entry, index) for entry in zip(models, files, scores, strict=True)]}
            for index in shown_indices(files, scores, len(models))
        ],
        "pairs": [
            pair
            for model, paths, some in zip(models, files, scores, strict=True)
            if some is not None
            for pair in _pairs(original, files[0], model, paths, some)
        ],
        "num_images": min(map(len, files)),
    }


def _tile(model: SampledModel, files: Mapping[int, Path], scores: PairScores | None, index: int) -> dict[str, Any]:
    ssim = None if scores is None else scores.by_index.get(index)
    text = "" if ssim is None else f"{ssim:.3f}"
    alt = f"image {index}, {model.name}" + (f", SSIM {text}" if text else "")
    ranks = {} if scores is None else {scores.median: "median", scores.worst: "worst"}
    return {"image": embed_image(files[index]), "ssim": text, "alt": alt, "rank": ranks.get(index, "")}


def _pairs(
    original: SampledModel, original_files: Mapping[int, Path], model: SampledModel, files: Mapping[int, Path],
    scores: PairScores,
) -> list[dict[str, Any]]:  # fmt: skip
    """The worst and the median pair of a model."""
    return [
        {
            "model": model.name,
            "rank": rank,
            "num_scored": len(scores.by_index),
            "index": index,
            "ssim": f"{scores.by_index[index]:.3f}",
            "sides": [
                (name, embed_image(paths[index], PAIR_SIDE, PAIR_SIDE), f"image {index}, {name}")
                for name, paths in ((original.name, original_files), (model.name, files))
            ],
        }
        for rank, index in (("worst", scores.worst), ("median", scores.median))
    ]
