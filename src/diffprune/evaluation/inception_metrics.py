"""Numbers of two image sets from their features, each with the protocol that it came about by."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from diffprune.errors import DataError
from diffprune.evaluation.feature_statistics import ARRAYS, ImageStatistics
from diffprune.evaluation.frechet import gaussian_distance
from diffprune.evaluation.inception_features import KEPT, Features
from diffprune.evaluation.protocol import UNKNOWN, Protocol, of_number
from diffprune.evaluation.torch_fidelity_metrics import inception_score, kernel_distance, precision_and_recall
from diffprune.options import EvaluateOptions

ENOUGH = 2048
"""Images below which the covariance of 2048 features is singular and FID depends on their number above all."""

Numbers = dict[str, float]
Protocols = dict[str, dict[str, Any]]


def fewest_images(
    metrics: Sequence[str], options: EvaluateOptions, *, reference: bool
) -> Mapping[str, tuple[int, str]]:
    """Metric -> how many images IMAGES (or the reference) must hold, and what asks for so many."""
    known = {
        "frechet_distance": (2, "a covariance"),
        "fid": (2, "a covariance"),
        "sfid": (2, "a covariance"),
        "kid": (options.kid_subset_size, "kid_subset_size"),
        "precision": (options.neighborhood + 1, "neighborhood + 1"),
        "recall": (options.neighborhood + 1, "neighborhood + 1"),
        "inception_score": (1 if reference else options.inception_splits, "inception_splits"),
    }
    return {metric: known[metric] for metric in metrics if metric in known}


def check_number(source: str, num: int, metrics: Sequence[str], options: EvaluateOptions, *, reference: bool) -> None:
    """Raise DataError that says, per metric, how many images are needed where there are fewer."""
    few = fewest_images(metrics, options, reference=reference)
    lacking = [f"{metric} needs at least {needed} ({why})" for metric, (needed, why) in few.items() if num < needed]
    if lacking:
        raise DataError(f"{source} holds {num} image{'s' * (num != 1)}: {'; '.join(lacking)}")


def check_comparable(ours: Protocol | None, theirs: Protocol | None, what: str) -> None:
    """Raise DataError when two known protocols differ."""
    if ours is not None and theirs is not None and ours != theirs:
        raise DataError(
            f"{what} was made by another protocol ({theirs.differences(ours)}); numbers of "
            "different protocols cannot be compared: choose the same options, or make the statistics again"
        )


def compare_statistics(
    metrics: Sequence[str], ours: ImageStatistics, theirs: ImageStatistics
) -> tuple[Numbers, Protocols]:
    """`fid` and `sfid` of two sets' statistics; where a file bears no protocol, the number says so."""
    numbers: Numbers = {}
    protocols: Protocols = {}
    for metric in metrics:
        first, second = ours.by_metric[metric], theirs.by_metric[metric]
        numbers[metric] = gaussian_distance(first.mu, first.sigma, second.mu, second.sigma)
        facts = {
            **(asdict(ours.protocol) if ours.protocol else {"network": UNKNOWN}),
            "layer": ARRAYS[metric][0],
            "num_images": ours.num_images,
            "num_reference_images": theirs.num_images,
            "reference": "same protocol" if theirs.protocol else UNKNOWN,
        }
        protocols[metric] = of_number(facts, note=_note(ours.num_images, theirs.num_images))
    return numbers, protocols


def compare_features(
    metrics: Sequence[str], ours: Features, theirs: Features | None, protocol: Protocol, options: EvaluateOptions
) -> tuple[Numbers, Protocols]:
    """`kid`, `precision`, `recall` and `inception_score` from the features that were kept."""
    numbers: Numbers = {}
    protocols: Protocols = {}
    facts = {**asdict(protocol), "num_images": ours.num_images}
    if "inception_score" in metrics:
        mean, std = inception_score(ours.kept["logits"], splits=options.inception_splits, seed=options.seed)
        numbers |= {"inception_score_mean": mean, "inception_score_std": std}
        settings = {"inception_splits": options.inception_splits, "seed": options.seed}
        protocols["inception_score"] = of_number(facts | {"layer": KEPT["inception_score"]} | settings)
    if theirs is None:
        return numbers, protocols
    facts |= {"layer": KEPT["kid"], "num_reference_images": theirs.num_images}
    if "kid" in metrics:
        settings = {"subsets": options.kid_subsets, "subset_size": options.kid_subset_size, "seed": options.seed}
        mean, std = kernel_distance(ours.kept["pool"], theirs.kept["pool"], **settings)
        numbers |= {"kid_mean": mean, "kid_std": std}
        protocols["kid"] = of_number(facts | settings)
    balls = [metric for metric in metrics if metric in ("precision", "recall")]
    if balls:
        settings = {"neighborhood": options.neighborhood}
        found = precision_and_recall(ours.kept["pool"], theirs.kept["pool"], **settings)
        named = dict(zip(("precision", "recall"), found, strict=True))
        numbers |= {metric: named[metric] for metric in balls}
        protocols |= {metric: of_number(facts | settings) for metric in balls}
    return numbers, protocols


def _note(num_images: int | None, num_reference: int | None) -> str | None:
    fewest = min(num for num in (num_images, num_reference, ENOUGH) if num is not None)
    if fewest >= ENOUGH:
        return None
    return f"{fewest} images are few: below {ENOUGH} the number says more about how many they are than what they show"
