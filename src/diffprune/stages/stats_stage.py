"""Command `stats`: compute feature statistics of an image set, as a reference for other image sets."""

import functools
import shutil
from collections.abc import Mapping
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
from diffprune.runs.run_record import Existing, differences, identity
from diffprune.runs.tensor_cache import partial_folder


def make_statistics(source: str, options: StatsOptions, sums: Accumulator | None = None) -> ImageStatistics:
    """Return mean and covariance of the Inception features of an image set.

    sums: cache of the sums, so that an interrupted call resumes; None caches nothing.
    Raises DataError for fewer than two images.
    """
    process_state(options.device)  # joins the process group, so that each rank has its own device
    images = open_image_set(source, options.num, preparation_of(options))
    if images.num < 2:
        raise DataError(f"{source} holds 1 image; statistics need at least 2 (use thousands)")
    inception = load_inception(options.inception_weights, pick_device(options.device))
    statistics = extract_features(images, options.metrics, inception, options, sums).statistics
    assert statistics is not None
    return statistics


def stats_stage(source: str, options: StatsOptions, out: Path, *, existing: Existing = "refuse") -> dict[str, Any]:
    """Write the statistics of an image set to the file `out` (.npz), atomically; an interrupted run resumes.

    Statistics of the same options and images are kept. `existing` is as in `run_record`. Files that diffprune did not
    write are never replaced. A temporary folder next to `out` caches the sums.
    Raises FolderError for statistics of other options or images, and for any other file.
    """
    if out.suffix != ".npz":
        raise FolderError(f"{out} is not an .npz file; choose a name such as stats.npz")
    weights = options.inception_weights
    request = {
        "options": options.decisive(),
        "images": {"source": source, "identity": identity(source)},
        "inception_weights": identity(str(weights)) if weights else None,
    }
    statistics = _existing_statistics(out)
    changes = "" if statistics is None else differences(_by_part(statistics.details), _by_part(request))
    if changes and existing == "refuse":
        raise FolderError(
            f"{out} holds statistics with other options or images ({changes}); add --overwrite to replace them, or "
            "choose another --out"
        )
    if statistics is None or changes or existing == "redo":
        on_main_process(functools.partial(remove_partials_of, out), options.device)
        sums = Accumulator(options.device, partial_folder(out), {**request, "batch_size": options.batch_size})
        sums.restore()
        computed = make_statistics(source, options, sums)
        details = {**request, **environment(), **computed.details}
        statistics = ImageStatistics(computed.by_metric, computed.num_images, computed.protocol, details)
        on_main_process(functools.partial(statistics.save, out), options.device)
    on_main_process(functools.partial(shutil.rmtree, partial_folder(out), ignore_errors=True), options.device)
    assert statistics.protocol is not None
    return {
        "stats": str(out),
        "num_images": statistics.num_images,
        "num_corrupt": statistics.details["num_corrupt"],
        "protocol": {metric: statistics.protocol.as_dict() for metric in statistics.by_metric},
    }


def _by_part(details: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options and inputs of statistics in the form of `differences`."""
    digest = details.get("inception_weights")
    return {
        "options": details.get("options"),
        "inputs": {"images": details.get("images"), "inception_weights": {"source": digest}},
    }


def _existing_statistics(out: Path) -> ImageStatistics | None:
    """Return the statistics in the file `out`, None without one; raise FolderError for any other file."""
    if not out.exists():
        return None
    try:
        statistics = read_statistics(out)
    except DataError:
        statistics = None
    if statistics is None or statistics.protocol is None:
        raise FolderError(f"{out} exists and was not made by diffprune; choose another --out or remove it yourself")
    return statistics
