"""Fitting a budget: the largest model within a share of the parameters or of the MACs."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from diffusers.models.modeling_utils import ModelMixin

from diffprune.criteria import Scores
from diffprune.errors import OptionError
from diffprune.groups import Group, smaller
from diffprune.models.cost import cost_of
from diffprune.models.resize import without_weights
from diffprune.options import BudgetOptions
from diffprune.planning.allocation import allocate

Kept = dict[str, tuple[int, ...]]
"""Group name -> units that stay."""

NUM_HALVINGS = 12
"""Halvings of the range in which the scale of the ratios is looked for: 1 in 4,096 is below one unit of most groups."""

ALL_BUT = 0.999
"""Largest ratio that is tried."""


def fit(
    denoiser: ModelMixin, groups: Sequence[Group], scores: Scores, options: BudgetOptions, *, progress: float = 1.0
) -> Kept:
    """Choose the units that stay: at the ratios asked for, or as many as a budget allows.

    With a budget the ratios only say how groups compare; all are scaled by one number, found by bisection, so that the
    model keeps at most the share asked for. progress: share of the way to go, in (0, 1], for pruning in rounds.
    Raises OptionError for a budget that cannot be met.
    """
    wanted = {name: share for name in ("params", "macs") if (share := getattr(options, name)) is not None}
    if not wanted:
        return allocate(groups, scores, options, progress=progress)
    limits = {name: 1 - (1 - share) * progress for name, share in wanted.items()}
    shadow = without_weights(denoiser)
    before = _sizes(shadow, limits)
    known: dict[tuple[tuple[int, ...], ...], bool] = {}

    def fits(kept: Kept) -> bool:
        choice = tuple(kept.values())
        if choice not in known:  # few units make few choices
            after = _sizes(smaller(shadow, groups, kept), limits)
            known[choice] = all(after[name] <= limit * before[name] for name, limit in limits.items())
        return known[choice]

    largest = max(options.ratio.values()) if isinstance(options.ratio, Mapping) else options.ratio
    if largest == 0:
        raise OptionError("the budget cannot be met: the ratios are 0 everywhere")
    low, high = 0.0, ALL_BUT / largest
    below, above = (allocate(groups, scores, options, progress=scale) for scale in (high, low))
    if not fits(below):
        after = _sizes(smaller(shadow, groups, below), limits)
        smallest = ", ".join(f"{after[name] / before[name]:.2f} of the {name}" for name in limits)
        raise OptionError(
            f"the budget cannot be met: with these kinds, ignored layers and bounds at least {smallest} stay"
        )
    for _ in range(NUM_HALVINGS):
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


def _sizes(denoiser: ModelMixin, wanted: Mapping[str, float]) -> dict[str, int]:
    """Parameters, and MACs where they are asked for (they take a traced pass)."""
    if "macs" in wanted:
        cost = cost_of(denoiser)
        return {"params": cost.params, "macs": cost.macs}
    return {"params": sum(parameter.numel() for parameter in denoiser.parameters())}
