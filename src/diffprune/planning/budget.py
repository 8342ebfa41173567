"""Fitting a budget: the largest model within a share of the parameters, of the MACs, or of the time it takes."""

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
"""Group name -> units that stay."""

NUM_HALVINGS = 12
"""Halvings of the range in which the scale of the ratios is looked for: 1 in 4,096 is below one unit of most groups."""

NUM_TIMED_HALVINGS = 7
"""The same where each candidate is timed: 1 in 128 is below what a clock tells apart."""

NUM_TRIES = 3
"""Times that a choice within a latency budget is looked for."""

TOLERANCE = 0.05
"""Share by which the chosen model, timed once more, may be off a latency budget without another try."""

ALL_BUT = 0.999
"""Largest ratio that is tried."""


@dataclass(frozen=True)
class Fitted:
    """The units that stay, and with a latency budget what they take on the clock."""

    kept: Kept
    latency: Latency | None = None


def fit(
    denoiser: ModelMixin, groups: Sequence[Group], scores: Scores, options: PlanOptions, *, progress: float = 1.0
) -> Fitted:
    """Choose the units that stay: at the ratios asked for, or as many as a budget allows.

    With a budget the ratios only say how groups compare; all are scaled by one number, found by bisection, so that the
    model keeps at most the share asked for. Candidates are timed where there is a latency budget; where the choice is
    off by more than 5 % when it is timed again, another is looked for.
    progress: share of the way to go, in (0, 1], for pruning in rounds.
    Raises OptionError for a budget that cannot be met.
    """
    wanted = {name: share for name in ("params", "macs") if (share := getattr(options, f"keep_{name}")) is not None}
    limits = {name: 1 - (1 - share) * progress for name, share in wanted.items()}
    clock = clock_for(denoiser, options)
    if clock is None:
        chosen = _largest(denoiser, groups, scores, options, limits) if limits else None
        return Fitted(chosen or allocate(groups, scores, options, progress=progress))
    asked = limit = 1 - (1 - clock.limit()) * progress
    found: list[tuple[Latency, Kept]] = []
    for _ in range(NUM_TRIES):
        kept = _largest(denoiser, groups, scores, options, {**limits, "time": limit}, clock)
        found.append((clock.time(remove_units(denoiser, groups, kept), ROUNDS), kept))
        measured = found[-1][0].share
        if abs(measured / asked - 1) <= TOLERANCE:
            break
        limit *= asked / measured
    met = [each for each in found if each[0].share <= asked * (1 + TOLERANCE)]
    if met:
        latency, kept = max(met, key=lambda each: each[0].share)
        return Fitted(kept, latency)
    raise OptionError(
        f"the latency budget cannot be met: {asked:.2f} of the original's time was asked for, and what fitted it takes "
        f"{min(latency.share for latency, _ in found):.2f} when it is timed again; other work on the machine, or "
        "passes too short to time, do that"
    )


def _largest(
    denoiser: ModelMixin, groups: Sequence[Group], scores: Scores, options: PlanOptions, limits: Mapping[str, float],
    clock: Clock | None = None,
) -> Kept:  # fmt: skip
    """The largest choice of units within limits: shares of the params, the macs and, with a clock, the time."""
    shadow = without_weights(denoiser)
    names = [name for name in limits if name != "time"]
    before = _sizes(shadow, names)
    known: dict[tuple[tuple[int, ...], ...], bool] = {}

    def shares(kept: Kept) -> Iterator[tuple[str, float]]:
        after = _sizes(remove_units(shadow, groups, kept), names)
        yield from ((name, after[name] / before[name]) for name in names)
        if clock is not None:  # last, for it takes longest
            yield "time", clock.time(remove_units(denoiser, groups, kept)).share

    def fits(kept: Kept) -> bool:
        choice = tuple(kept.values())
        if choice not in known:  # few units make few choices
            known[choice] = all(share <= limits[name] for name, share in shares(kept))
        return known[choice]

    largest = max(options.ratio.values()) if isinstance(options.ratio, Mapping) else options.ratio
    if largest == 0:
        raise OptionError("the budget cannot be met: the ratios are 0 everywhere")
    low, high = 0.0, ALL_BUT / largest
    below, above = (allocate(groups, scores, options, progress=scale) for scale in (high, low))
    if not fits(below):
        smallest = ", ".join(f"{share:.2f} of the {name}" for name, share in shares(below))
        multiples = "" if options.round_to is None else f", multiples of {options.round_to}"
        raise OptionError(
            f"the budget cannot be met: with these kinds, ignored layers{multiples} and bounds at least {smallest} stay"
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
    """As many groups as fit at their larger size, first those that get most of their score back for it.

    Units that an earlier round has removed stay so. One step of the ratios moves all groups of one size at once, by a
    whole unit of each norm group: far, in MACs.
    """

    def gain(name: str) -> float:
        values = scores.values[name]
        back = values[torch.tensor(sorted({*above[name]} - {*below[name]}))].sum()
        return float(back / values[torch.tensor(above[name])].sum().clamp(min=1e-30))

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
    """Those of the parameters and MACs that are asked for (MACs take a traced pass)."""
    if "macs" in names:
        cost = layer_cost_of(denoiser)
        return {"params": cost.params, "macs": cost.macs}
    return {"params": sum(parameter.numel() for parameter in denoiser.parameters())} if names else {}
