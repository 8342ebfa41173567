"""Stage `stats`: statistics of an image set, to compare others with."""

from pathlib import Path
from typing import Any

from diffprune.errors import DataError, FolderError
from diffprune.evaluation.inception import load_inception
from diffprune.evaluation.sets import gather, open_set
from diffprune.evaluation.statistics import ImageStatistics, read_statistics
from diffprune.models.loading import pick_device
from diffprune.options import StatsOptions
from diffprune.records import Existing, environment, identity
from diffprune.stages.calls import with_options


@with_options(StatsOptions)
def stats(images: str | Path, options: StatsOptions) -> ImageStatistics:
    """Mean and covariance of the Inception features of an image set; `save(path)` writes them as .npz.

    images: a folder, a parquet file, a dataset id or `digits`. Raises DataError when images are missing, unreadable
    or fewer than two, ModelError when the network's weights cannot be had.
    """
    return make_statistics(str(images), options)


def make_statistics(source: str, options: StatsOptions) -> ImageStatistics:
    """`stats` with its options as one value."""
    images = open_set(source, options.num)
    if images.num < 2:
        raise DataError(f"{source} holds 1 image; statistics need at least 2 (use thousands)")
    inception = load_inception(options.inception_weights, pick_device(options.device))
    found = gather(images, options.metrics, inception, options).statistics
    assert found is not None
    return found


def stats_stage(source: str, options: StatsOptions, out: Path, *, existing: Existing = "refuse") -> dict[str, Any]:
    """Write the statistics of an image set to `out` (.npz), whole; the same ones that are there already are kept."""
    if out.suffix != ".npz":
        raise FolderError(f"{out} is not an .npz file; give statistics a name such as stats.npz")
    given = {
        "options": options.resolved(),
        "images": {"source": source, "identity": identity(source)},
        "inception_weights": identity(str(options.inception_weights)) if options.inception_weights else None,
    }
    there = _there(out)
    if there is not None and any(there.details.get(name) != value for name, value in given.items()):
        if existing == "refuse":
            raise FolderError(f"{out} holds statistics made otherwise; add --overwrite or choose another --out")
        there = None
    if there is None:
        made = make_statistics(source, options)
        there = ImageStatistics(made.by_metric, made.num_images, made.protocol, {**given, **environment()})
        there.save(out)
    assert there.protocol is not None
    return {
        "stats": str(out),
        "num_images": there.num_images,
        "protocol": {metric: there.protocol.as_dict() for metric in there.by_metric},
    }


def _there(out: Path) -> ImageStatistics | None:
    """Statistics that an earlier run left; raises FolderError for anything else in that place."""
    if not out.exists():
        return None
    try:
        found = read_statistics(out)
    except DataError:
        found = None
    if found is None or found.protocol is None:
        raise FolderError(f"{out} exists and was not made by diffprune; choose another --out or remove it yourself")
    return found
