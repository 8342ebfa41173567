"""Stage `stats`: statistics of an image set, to compare others with."""

import functools
import shutil
from pathlib import Path
from typing import Any

from diffprune.compute.device import pick_device
from diffprune.errors import DataError, FolderError
from diffprune.evaluation.feature_statistics import ImageStatistics, read_statistics
from diffprune.evaluation.image_preparation import preparation_of
from diffprune.evaluation.inception import load_inception
from diffprune.evaluation.inception_features import extract_features, open_image_set
from diffprune.options import StatsOptions
from diffprune.runs.accumulator import Accumulator
from diffprune.runs.atomic_files import remove_partials_of
from diffprune.runs.distributed import on_main_process, process_state
from diffprune.runs.environment import environment
from diffprune.runs.run_record import Existing, identity
from diffprune.runs.tensor_cache import partial_folder


def make_statistics(source: str, options: StatsOptions, sums: Accumulator | None = None) -> ImageStatistics:
    """Return mean and covariance of the Inception features of an image set. sums: cache of an interrupted run.

    Raises DataError for fewer than two images.
    """
    process_state(options.device)  # joins the others, so that each has a device of its own
    images = open_image_set(source, options.num, preparation_of(options))
    if images.num < 2:
        raise DataError(f"{source} holds 1 image; statistics need at least 2 (use thousands)")
    inception = load_inception(options.inception_weights, pick_device(options.device))
    found = extract_features(images, options.metrics, inception, options, sums).statistics
    assert found is not None
    return found


def stats_stage(source: str, options: StatsOptions, out: Path, *, existing: Existing = "refuse") -> dict[str, Any]:
    """Write the statistics of an image set to `out` (.npz), whole.

    Statistics of the same options and images that are there already are kept, others are refused; with `existing`
    as in `run_record` they are computed again. Files that are not ours are never replaced. Sums are kept beside
    `out` meanwhile, for the same call after an interruption.
    """
    if out.suffix != ".npz":
        raise FolderError(f"{out} is not an .npz file; give statistics a name such as stats.npz")
    weights = options.inception_weights
    given = {
        "options": options.decisive(),
        "images": {"source": source, "identity": identity(source)},
        "inception_weights": identity(str(weights)) if weights else None,
    }
    found = _there(out)
    same = found is not None and all(found.details.get(name) == value for name, value in given.items())
    if found is not None and not same and existing == "refuse":
        raise FolderError(f"{out} holds statistics made otherwise; add --overwrite or choose another --out")
    if found is None or not same or existing == "redo":
        on_main_process(functools.partial(remove_partials_of, out), options.device)
        sums = Accumulator(options.device, partial_folder(out), {**given, "batch_size": options.batch_size})
        sums.restore()
        made = make_statistics(source, options, sums)
        details = {**given, **environment(), **made.details}
        found = ImageStatistics(made.by_metric, made.num_images, made.protocol, details)
        on_main_process(functools.partial(found.save, out), options.device)
    on_main_process(functools.partial(shutil.rmtree, partial_folder(out), ignore_errors=True), options.device)
    assert found.protocol is not None
    return {
        "stats": str(out),
        "num_images": found.num_images,
        "num_corrupt": found.details["num_corrupt"],
        "protocol": {metric: found.protocol.as_dict() for metric in found.by_metric},
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
