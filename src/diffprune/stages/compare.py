"""The part of `evaluate` that compares two sets by Inception features, or by statistics of them."""

from collections.abc import Callable, Sequence
from pathlib import Path

from diffprune.errors import DataError
from diffprune.evaluation.inception import Inception, load_inception
from diffprune.evaluation.sets import KEPT, TENSORFLOW, Features, Images, gather, open_set
from diffprune.evaluation.statistics import ARRAYS, ImageStatistics, read_statistics
from diffprune.evaluation.verdicts import (
    Numbers,
    Protocols,
    check_comparable,
    check_number,
    compare_features,
    compare_statistics,
)
from diffprune.models.loading import pick_device
from diffprune.options import LONE_METRICS, EvaluateOptions

OF_INCEPTION = (*ARRAYS, *KEPT)


Work = Callable[[], tuple[Numbers, Protocols]]
"""What is left of an evaluation once its inputs were checked."""


def comparison(images: str, reference: str, metrics: Sequence[str], options: EvaluateOptions) -> Work:
    """Check what numbers of `OF_INCEPTION` metrics need; either side may be statistics for `fid` and `sfid`."""
    of_both = [metric for metric in metrics if metric not in LONE_METRICS]
    by_moments = [metric for metric in metrics if metric in ARRAYS]
    ours = _side(images, metrics, options.num)
    theirs = _side(reference, of_both, None) if of_both else None
    for side, asked, is_reference in ((ours, metrics, False), (theirs, of_both, True)):
        if isinstance(side, Images):
            check_number(side.source, side.num, asked, options, reference=is_reference)
    inception = None
    if isinstance(ours, Images) or isinstance(theirs, Images):
        inception = load_inception(options.inception_weights, pick_device(options.device))
    if by_moments:
        _check_protocols({images: ours, reference: theirs}, inception, options.resize)

    def work() -> tuple[Numbers, Protocols]:
        first = _features(ours, metrics, inception, options)
        second = _features(theirs, of_both, inception, options)
        numbers: Numbers = {}
        protocols: Protocols = {}
        if by_moments:
            numbers, protocols = compare_statistics(by_moments, _statistics(first), _statistics(second))
        if isinstance(first, Features) and first.kept:
            assert inception is not None
            kept = second if isinstance(second, Features) and second.kept else None
            more = compare_features(metrics, first, kept, inception.protocol(TENSORFLOW), options)
            numbers, protocols = numbers | more[0], protocols | more[1]
        return numbers, protocols

    return work


def _side(source: str, metrics: Sequence[str], num: int | None) -> Images | ImageStatistics:
    """What a side holds, unread in the case of images; raises DataError when it cannot serve the metrics."""
    if Path(source).suffix != ".npz":
        return open_set(source, num)
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


def _check_protocols(
    sides: dict[str, Images | ImageStatistics | None], inception: Inception | None, resize: str
) -> None:
    """Refuse statistics that differ from what this evaluation would make, or from each other."""
    known = {name: side.protocol for name, side in sides.items() if isinstance(side, ImageStatistics)}
    expected = inception.protocol(resize) if inception is not None else next(iter(known.values()))
    for name, protocol in known.items():
        check_comparable(expected, protocol, name)


def _features(
    side: Images | ImageStatistics | None,
    metrics: Sequence[str],
    inception: Inception | None,
    options: EvaluateOptions,
) -> Features | ImageStatistics | None:
    if not isinstance(side, Images):
        return side
    assert inception is not None
    return gather(side, metrics, inception, options)


def _statistics(side: Features | ImageStatistics | None) -> ImageStatistics:
    found = side.statistics if isinstance(side, Features) else side
    assert found is not None
    return found
