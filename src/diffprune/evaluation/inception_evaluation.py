"""Check the inputs of the Inception metrics, then compare two image sets, or their statistics."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from diffprune.compute.device import pick_device
from diffprune.errors import DataError
from diffprune.evaluation.feature_statistics import ARRAYS, ImageStatistics, read_statistics
from diffprune.evaluation.image_preparation import preparation_of
from diffprune.evaluation.inception import Inception, load_inception
from diffprune.evaluation.inception_features import (
    FEATURE_LAYERS,
    TENSORFLOW,
    ImageSetFeatures,
    SelectedImages,
    extract_features,
    open_image_set,
)
from diffprune.evaluation.inception_metrics import compare_features, compare_statistics
from diffprune.evaluation.minimum_images import check_num_images
from diffprune.evaluation.protocol import MetricProtocols, MetricValues, Protocol, check_comparable
from diffprune.options import LONE_METRICS, EvaluateOptions
from diffprune.runs.distributed import on_main_process

INCEPTION_METRICS = (*ARRAYS, *FEATURE_LAYERS)

NUM_CORRUPT = "num_corrupt"
"""Entry next to the metric values: number of unreadable images of both sides that were skipped."""

InputSet = SelectedImages | ImageStatistics
ComputedSet = ImageSetFeatures | ImageStatistics

Computation = Callable[[], tuple[MetricValues, MetricProtocols]]
"""Computes metric values whose inputs are already checked."""


def prepare_inception_metrics(
    images: str, reference: str, metrics: Sequence[str], options: EvaluateOptions
) -> Computation:
    """Check the inputs of `INCEPTION_METRICS`, and return their computation.

    images, reference: DATA; for `fid` and `sfid` also a statistics file. Raises DataError or ModelError.
    """
    paired_metrics = [metric for metric in metrics if metric not in LONE_METRICS]
    moment_metrics = [metric for metric in metrics if metric in ARRAYS]
    our_file = _read_statistics(images, metrics, options.num)
    their_file = _read_statistics(reference, paired_metrics, None) if paired_metrics else None
    protocol = next((file.protocol for file in (their_file, our_file) if file is not None), None)
    prepare = preparation_of(options, protocol)
    ours: InputSet = our_file or open_image_set(images, options.num, prepare)
    theirs: InputSet | None = None
    if paired_metrics:
        theirs = their_file or open_image_set(reference, None, prepare)
    for side, needed, is_reference in ((ours, metrics, False), (theirs, paired_metrics, True)):
        if isinstance(side, SelectedImages):
            check_num_images(side.source, side.num, needed, options, reference=is_reference)
    inception = None
    if isinstance(ours, SelectedImages) or isinstance(theirs, SelectedImages):
        inception = load_inception(options.inception_weights, pick_device(options.device))
    if moment_metrics:
        expected = None if inception is None else inception.protocol(options.resize, prepare.description)
        _check_protocols({images: ours, reference: theirs}, expected)

    def compute() -> tuple[MetricValues, MetricProtocols]:
        first = _computed(ours, metrics, inception, options)
        second = _computed(theirs, paired_metrics, inception, options)
        return on_main_process(functools.partial(compare, first, second), options.device)

    def compare(first: ComputedSet | None, second: ComputedSet | None) -> tuple[MetricValues, MetricProtocols]:
        values: MetricValues = {}
        protocols: MetricProtocols = {}
        for side, source, needed in ((first, images, metrics), (second, reference, paired_metrics)):
            if isinstance(side, ImageSetFeatures):  # skipped images may leave too few
                check_num_images(source, side.num_images, needed, options, reference=side is second)
        if moment_metrics:
            values, protocols = compare_statistics(moment_metrics, _statistics(first), _statistics(second))
        if isinstance(first, ImageSetFeatures) and first.by_layer:
            assert inception is not None
            other = second if isinstance(second, ImageSetFeatures) and second.by_layer else None
            of_features = inception.protocol(TENSORFLOW, prepare.description)
            more_values, more_protocols = compare_features(metrics, first, other, of_features, options)
            values, protocols = values | more_values, protocols | more_protocols
        if options.on_corrupt == "skip":
            sides = [side for side in (first, second) if isinstance(side, ImageSetFeatures)]
            values[NUM_CORRUPT] = sum(side.num_corrupt for side in sides)
        return values, protocols

    return compute


def check_reference(reference: str, metrics: Sequence[str], options: EvaluateOptions, *, with_network: bool) -> None:
    """Check a reference before there are images to compare with it; raises what the comparison would raise.

    with_network: compare a statistics file with the network, whose weights must be on disk or downloadable.
    """
    file = _read_statistics(reference, metrics, None)
    prepare = preparation_of(options, None if file is None else file.protocol)
    if file is None:
        num = open_image_set(reference, None, prepare).num
        check_num_images(reference, num, metrics, options, reference=True)
    elif with_network:
        inception = load_inception(options.inception_weights, torch.device("cpu"))
        _check_protocols({reference: file}, inception.protocol(options.resize, prepare.description))


def check_network(options: EvaluateOptions) -> None:
    """Raise ModelError when the weights file is not one of the Inception network."""
    load_inception(options.inception_weights, torch.device("cpu"))


def _read_statistics(source: str, metrics: Sequence[str], num: int | None) -> ImageStatistics | None:
    """Read a statistics file, None for images; raises DataError when it does not support the metrics or `num`."""
    if Path(source).suffix != ".npz":
        return None
    statistics = read_statistics(Path(source))
    lacking = [metric for metric in metrics if metric not in statistics.by_metric]
    if lacking:
        raise DataError(
            f"{source} holds statistics for {', '.join(statistics.by_metric)}, not for {', '.join(lacking)}; "
            + ("make them with stats --metrics" if set(lacking) <= {*ARRAYS} else "give the images themselves")
        )
    if num is not None:
        raise DataError(f"num chooses among images; {source} holds the statistics of a whole set")
    return statistics


def _check_protocols(sides: dict[str, InputSet | None], expected: Protocol | None) -> None:
    """Raise DataError when statistics differ from the expected protocol (None: from each other)."""
    known = {name: side.protocol for name, side in sides.items() if isinstance(side, ImageStatistics)}
    for name, protocol in known.items():
        check_comparable(expected or next(iter(known.values())), protocol, name)


def _computed(
    side: InputSet | None, metrics: Sequence[str], inception: Inception | None, options: EvaluateOptions
) -> ComputedSet | None:
    if not isinstance(side, SelectedImages):
        return side
    assert inception is not None
    return extract_features(side, metrics, inception, options)


def _statistics(side: ComputedSet | None) -> ImageStatistics:
    statistics = side.statistics if isinstance(side, ImageSetFeatures) else side
    assert statistics is not None
    return statistics
