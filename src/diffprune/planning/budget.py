"""Fit a budget: find the largest model within a share of the parameters, MACs or latency."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from diffusers.models.modeling_utils import ModelMixin

from diffprune.artifact.slicing import without_weights
from diffprune.compute.cost import layer_cost_of
from diffprune.criteria import Scores
from diffprune.errors import OptionError
from diffprune.groups import Group, remove_units
from diffprune.options import PlanOptions
from diffprune.planning.allocation import allocate
from diffprune.planning.latency import ROUNDS, Clock, Latency, clock_for

Kept = dict[str, tuple[int, ...]]
"""Group name -> kept units."""

NUM_HALVINGS = 12
"""Bisection steps for the scale of the ratios: 1 in 4,096 is less than one unit of most groups."""

NUM_TIMED_HALVINGS = 7
"""Bisection steps if each candidate is timed: 1 in 128 is below the resolution of the timing."""

NUM_TRIES = 3
"""Attempts to meet a latency budget."""

TOLERANCE = 0.05
"""Largest accepted relative error of a latency budget, by a second timing."""

MAX_RATIO = 0.999
"""Largest ratio of the bisection."""


@dataclass(frozen=True)
class Fitted:
    """The kept units, and the measured latency if there is a latency budget."""

    kept: Kept
    latency: Latency | None = None


def fit(
    denoiser: ModelMixin, groups: Sequence[Group], scores: Scores, options: PlanOptions, *, progress: float = 1.0
) -> Fitted:
    """Choose the units to keep: by the ratios, or as many as a budget allows.

    With a budget the ratios are relative. Bisection finds one scale for all ratios, such that the model keeps at most
    the share of the budget. For a latency budget each candidate is timed. If a second timing of the chosen candidate
    differs by more than 5 %, the search is repeated with a corrected limit.
    progress: share of the reduction to reach, in (0, 1], for pruning in rounds.
    Raises OptionError for a budget that cannot be met.
    """
    wanted = {name: share for name in ("params", "macs") if (share := getattr(options, f"keep_{name}")) is not None}
    limits = {name: 1 - (1 - share) * progress for name, share in wanted.items()}
    clock = clock_for(denoiser, options)
    if clock is None:
        chosen = _largest(denoiser, groups, scores, options, limits) if limits else None
        return Fitted(chosen or allocate(groups, scores, options, progress=progress))
    target = limit = 1 - (1 - clock.limit()) * progress
    candidates: list[tuple[Latency, Kept]] = []
    for _ in range(NUM_TRIES):
        kept = _largest(denoiser, groups, scores, options, {**limits, "time": limit}, clock)
        candidates.append((clock.time(remove_units(denoiser, groups, kept), ROUNDS), kept))
        measured = candidates[-1][0].share
        if abs(measured / target - 1) <= TOLERANCE:
            break
        limit *= target / measured
    met = [candidate for candidate in candidates if candidate[0].share <= target * (1 + TOLERANCE)]
    if met:
        latency, kept = max(met, key=lambda candidate: candidate[0].share)
        return Fitted(kept, latency)
    raise OptionError(
        f"the latency budget cannot be met: the limit is {target:.2f} of the original latency, the best candidate "
        f"takes {min(latency.share for latency, _ in candidates):.2f}; stop other work on the machine, or raise "
        "latency_batch_size if a forward pass is too short to time"
    )


def _largest(
    denoiser: ModelMixin, groups: Sequence[Group], scores: Scores, options: PlanOptions, limits: Mapping[str, float],
    clock: Clock | None = None,
) -> Kept:  # fmt: skip
    """Return the most units within limits: shares of `params`, `macs` and (with a clock) `time`."""
    shadow = without_weights(denoiser)
    names = [name for name in limits if name != "time"]
    before = _sizes(shadow, names)
    known: dict[tuple[tuple[int, ...], ...], bool] = {}

    def shares(kept: Kept) -> Iterator[tuple[str, float]]:
        after = _sizes(remove_units(shadow, groups, kept), names)
        yield from ((name, after[name] / before[name]) for name in names)
        if clock is not None:  # last, because it takes longest
            yield "time", clock.time(remove_units(denoiser, groups, kept)).share

    def fits(kept: Kept) -> bool:
        choice = tuple(kept.values())
        if choice not in known:  # with few units, several scales give the same choice
            known[choice] = all(share <= limits[name] for name, share in shares(kept))
        return known[choice]

    largest = max(options.ratio.values()) if isinstance(options.ratio, Mapping) else options.ratio
    if largest == 0:
        raise OptionError("the budget cannot be met: every ratio is 0; set a ratio above 0")
    low, high = 0.0, MAX_RATIO / largest
    below, above = (allocate(groups, scores, options, progress=scale) for scale in (high, low))
    if not fits(below):
        smallest = ", ".join(f"{share:.2f} of the {name}" for name, share in shares(below))
        multiples = "" if options.round_to is None else f", multiples of {options.round_to}"
        raise OptionError(
            f"the budget cannot be met: with these kinds, ignored layers{multiples} and bounds, the smallest model "
            f"keeps {smallest}; raise the budget or prune more kinds"
        )
    for _ in range(NUM_HALVINGS if clock is None else NUM_TIMED_HALVINGS):
        middle = (low + high) / 2
        kept = allocate(groups, scores, options, progress=middle)
        if fits(kept):
            below, high = kept, middle
        else:
            above, low = kept, middle
    return _between(below, above, scores, fits)


def _between(below: Kept, above: Kept, scores: Scores, fits: Callable[[Kept], bool]) -> Kept:
    """Return `below`, with as many groups as fit enlarged to their size in `above`, by relative gain in score.

    One step of the ratios changes all groups of one size at once, by one unit of each norm group: a large step in MACs.
    Units that earlier rounds removed are not restored.
    """

    def gain(name: str) -> float:
        values = scores.values[name]
        regained = values[torch.tensor(sorted({*above[name]} - {*below[name]}))].sum()
        return float(regained / values[torch.tensor(above[name])].sum().clamp(min=1e-30))

    larger = [name for name in below if len(above[name]) > len(below[name])]
    order = sorted((name for name in larger if math.isfinite(gain(name))), key=gain, reverse=True)

    def mixed(num: int) -> Kept:
        return {**below, **{name: above[name] for name in order[:num]}}

    low, high = 0, len(order)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(mixed(middle)) else (low, middle)
    return mixed(low)


def _sizes(denoiser: ModelMixin, names: Sequence[str]) -> dict[str, int]:
    """Return the parameters and MACs in `names`; MACs need a traced forward pass."""
    if "macs" in names:
        cost = layer_cost_of(denoiser)
        return {"params": cost.params, "macs": cost.macs}
    return {"params": sum(parameter.numel() for parameter in denoiser.parameters())} if names else {}
