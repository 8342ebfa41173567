"""Compute FID, sFID, KID, precision, recall and inception score from features, each with its protocol."""

from collections.abc import Sequence
from dataclasses import asdict

from diffprune.evaluation.feature_statistics import ARRAYS, ImageStatistics
from diffprune.evaluation.frechet import gaussian_distance
from diffprune.evaluation.inception_features import FEATURE_LAYERS, ImageSetFeatures
from diffprune.evaluation.protocol import UNKNOWN, MetricProtocols, MetricValues, Protocol, protocol_of_value
from diffprune.evaluation.torch_fidelity_metrics import inception_score, kernel_distance, precision_and_recall
from diffprune.options import EvaluateOptions

ENOUGH = 2048
"""Below this number of images the covariance of 2048 features is singular, and FID depends mostly on the number."""


def compare_statistics(
    metrics: Sequence[str], ours: ImageStatistics, theirs: ImageStatistics
) -> tuple[MetricValues, MetricProtocols]:
    """Compute `fid` and `sfid` of two sets' statistics; the protocol says where a file does not state its own."""
    values: MetricValues = {}
    protocols: MetricProtocols = {}
    for metric in metrics:
        first, second = ours.by_metric[metric], theirs.by_metric[metric]
        values[metric] = gaussian_distance(first.mu, first.sigma, second.mu, second.sigma)
        facts = {
            **(asdict(ours.protocol) if ours.protocol else {"network": UNKNOWN}),
            "layer": ARRAYS[metric][0],
            "num_images": ours.num_images,
            "num_reference_images": theirs.num_images,
            "reference": "same protocol" if theirs.protocol else UNKNOWN,
        }
        protocols[metric] = protocol_of_value(facts, note=_note(ours.num_images, theirs.num_images))
    return values, protocols


def compare_features(
    metrics: Sequence[str],
    ours: ImageSetFeatures,
    theirs: ImageSetFeatures | None,
    protocol: Protocol,
    options: EvaluateOptions,
) -> tuple[MetricValues, MetricProtocols]:
    """Compute `kid`, `precision`, `recall` and `inception_score` from per-image features.

    theirs: the reference; None computes `inception_score` only, which needs no reference.
    """
    values: MetricValues = {}
    protocols: MetricProtocols = {}
    facts = {**asdict(protocol), "num_images": ours.num_images}
    if "inception_score" in metrics:
        mean, std = inception_score(ours.by_layer["logits"], splits=options.inception_splits, seed=options.seed)
        values |= {"inception_score_mean": mean, "inception_score_std": std}
        settings = {"inception_splits": options.inception_splits, "seed": options.seed}
        protocols["inception_score"] = protocol_of_value(
            facts | {"layer": FEATURE_LAYERS["inception_score"]} | settings
        )
    if theirs is None:
        return values, protocols
    facts |= {"layer": FEATURE_LAYERS["kid"], "num_reference_images": theirs.num_images}
    if "kid" in metrics:
        settings = {"subsets": options.kid_subsets, "subset_size": options.kid_subset_size, "seed": options.seed}
        mean, std = kernel_distance(ours.by_layer["pool"], theirs.by_layer["pool"], **settings)
        values |= {"kid_mean": mean, "kid_std": std}
        protocols["kid"] = protocol_of_value(facts | settings)
    neighbor_metrics = [metric for metric in metrics if metric in ("precision", "recall")]
    if neighbor_metrics:
        settings = {"neighborhood": options.neighborhood}
        precision, recall = precision_and_recall(ours.by_layer["pool"], theirs.by_layer["pool"], **settings)
        both = {"precision": precision, "recall": recall}
        values |= {metric: both[metric] for metric in neighbor_metrics}
        protocols |= {metric: protocol_of_value(facts | settings) for metric in neighbor_metrics}
    return values, protocols


def _note(num_images: int | None, num_reference: int | None) -> str | None:
    fewest = min(num for num in (num_images, num_reference, ENOUGH) if num is not None)
    if fewest >= ENOUGH:
        return None
    return f"{fewest} images are few: below {ENOUGH} the value depends mostly on the number of images"
