"""The part of `evaluate` that compares two sets by Inception features, or by statistics of them."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from diffprune.compute.device import pick_device
from diffprune.errors import DataError
from diffprune.evaluation.feature_statistics import ARRAYS, ImageStatistics, read_statistics
from diffprune.evaluation.image_preparation import preparation_of
from diffprune.evaluation.inception import Inception, load_inception
from diffprune.evaluation.inception_features import KEPT, TENSORFLOW, Features, Images, gather, open_set
from diffprune.evaluation.inception_metrics import (
    Numbers,
    Protocols,
    check_comparable,
    check_number,
    compare_features,
    compare_statistics,
)
from diffprune.evaluation.protocol import Protocol
from diffprune.options import LONE_METRICS, EvaluateOptions
from diffprune.runs.distributed import on_main_process

OF_INCEPTION = (*ARRAYS, *KEPT)

NUM_CORRUPT = "num_corrupt"
"""Beside the numbers of metrics: how many images of both sides could not be read and were left out."""

Side = Images | ImageStatistics
Done = Features | ImageStatistics

Work = Callable[[], tuple[Numbers, Protocols]]
"""What is left of an evaluation once its inputs were checked."""


def comparison(images: str, reference: str, metrics: Sequence[str], options: EvaluateOptions) -> Work:
    """Check what numbers of `OF_INCEPTION` metrics need; either side may be statistics for `fid` and `sfid`."""
    of_both = [metric for metric in metrics if metric not in LONE_METRICS]
    by_moments = [metric for metric in metrics if metric in ARRAYS]
    our_file = _read(images, metrics, options.num)
    their_file = _read(reference, of_both, None) if of_both else None
    prepare = preparation_of(options, next((f.protocol for f in (their_file, our_file) if f is not None), None))
    ours: Side = our_file or open_set(images, options.num, prepare)
    theirs: Side | None = (their_file or open_set(reference, None, prepare)) if of_both else None
    for side, asked, is_reference in ((ours, metrics, False), (theirs, of_both, True)):
        if isinstance(side, Images):
            check_number(side.source, side.num, asked, options, reference=is_reference)
    inception = None
    if isinstance(ours, Images) or isinstance(theirs, Images):
        inception = load_inception(options.inception_weights, pick_device(options.device))
    if by_moments:
        expected = None if inception is None else inception.protocol(options.resize, prepare.fact)
        _check_protocols({images: ours, reference: theirs}, expected)

    def work() -> tuple[Numbers, Protocols]:
        first = _features(ours, metrics, inception, options)
        second = _features(theirs, of_both, inception, options)
        return on_main_process(functools.partial(figures, first, second), options.device)

    def figures(first: Done | None, second: Done | None) -> tuple[Numbers, Protocols]:
        numbers: Numbers = {}
        protocols: Protocols = {}
        for side, source, asked in ((first, images, metrics), (second, reference, of_both)):
            if isinstance(side, Features):  # fewer than were found at first, where corrupt ones were left out
                check_number(source, side.num_images, asked, options, reference=side is second)
        if by_moments:
            numbers, protocols = compare_statistics(by_moments, _statistics(first), _statistics(second))
        if isinstance(first, Features) and first.kept:
            assert inception is not None
            kept = second if isinstance(second, Features) and second.kept else None
            more = compare_features(metrics, first, kept, inception.protocol(TENSORFLOW, prepare.fact), options)
            numbers, protocols = numbers | more[0], protocols | more[1]
        if options.on_corrupt == "skip":
            numbers[NUM_CORRUPT] = sum(side.num_corrupt for side in (first, second) if isinstance(side, Features))
        return numbers, protocols

    return work


def check_reference(reference: str, metrics: Sequence[str], options: EvaluateOptions, *, with_network: bool) -> None:
    """What `comparison` would refuse of a reference, before there are images to compare with it.

    with_network: hold statistics against the network, whose weights must be at hand.
    """
    file = _read(reference, metrics, None)
    prepare = preparation_of(options, None if file is None else file.protocol)
    if file is None:
        check_number(reference, open_set(reference, None, prepare).num, metrics, options, reference=True)
    elif with_network:
        inception = load_inception(options.inception_weights, torch.device("cpu"))
        _check_protocols({reference: file}, inception.protocol(options.resize, prepare.fact))


def check_network(options: EvaluateOptions) -> None:
    """Raise ModelError when the weights are not those of the network."""
    load_inception(options.inception_weights, torch.device("cpu"))


def _read(source: str, metrics: Sequence[str], num: int | None) -> ImageStatistics | None:
    """The statistics of a side, None for images; raises DataError when they cannot serve the metrics."""
    if Path(source).suffix != ".npz":
        return None
    found = read_statistics(Path(source))
    lacking = [metric for metric in metrics if metric not in found.by_metric]
    if lacking:
        raise DataError(
            f"{source} holds statistics for {', '.join(found.by_metric)}, not for {', '.join(lacking)}; "
            + ("make them with stats --metrics" if set(lacking) <= {*ARRAYS} else "give the images themselves")
        )
    if num is not None:
        raise DataError(f"num chooses among images; {source} holds the statistics of a whole set")
    return found


def _check_protocols(sides: dict[str, Side | None], expected: Protocol | None) -> None:
    """Refuse statistics that differ from what this evaluation would make (None: nothing), or from each other."""
    known = {name: side.protocol for name, side in sides.items() if isinstance(side, ImageStatistics)}
    for name, protocol in known.items():
        check_comparable(expected or next(iter(known.values())), protocol, name)


def _features(
    side: Side | None, metrics: Sequence[str], inception: Inception | None, options: EvaluateOptions
) -> Done | None:
    if not isinstance(side, Images):
        return side
    assert inception is not None
    return gather(side, metrics, inception, options)


def _statistics(side: Done | None) -> ImageStatistics:
    found = side.statistics if isinstance(side, Features) else side
    assert found is not None
    return found
