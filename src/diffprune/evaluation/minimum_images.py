"""Check that image sets hold as many images as each metric needs."""

from collections.abc import Mapping, Sequence

from diffprune.errors import DataError
from diffprune.options import EvaluateOptions


def minimum_images(
    metrics: Sequence[str], options: EvaluateOptions, *, reference: bool
) -> Mapping[str, tuple[int, str]]:
    """Map each metric to the smallest number of images it accepts, and to the reason.

    reference: whether the set is the reference rather than IMAGES.
    """
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


def check_num_images(
    source: str, num: int, metrics: Sequence[str], options: EvaluateOptions, *, reference: bool
) -> None:
    """Raise DataError that lists every metric for which `num` images are too few."""
    minimum = minimum_images(metrics, options, reference=reference)
    lacking = [f"{metric} needs at least {least} ({why})" for metric, (least, why) in minimum.items() if num < least]
    if lacking:
        raise DataError(f"{source} holds {num} image{'s' * (num != 1)}: {'; '.join(lacking)}")
