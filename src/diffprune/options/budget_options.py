"""Options of the budget: how many units to remove, and from which layers."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PlainValidator, ValidationInfo, field_validator

from diffprune.options.option_set import Groups, Options, number_or_auto

Kind = Literal["channels", "heads", "neurons", "blocks"]
Ranking = Literal["local", "global", "isomorphic"]

DEFAULT_RATIO = 0.3
EVERYWHERE = "*"
"""Pattern that matches every layer."""


def parse_ratio(value: Any) -> float | dict[str, float]:
    """Return a ratio, or ratios by layer pattern, from a number, a mapping or words such as `0.3 mid_block.*=0.1`."""
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        pairs = [str(word).rpartition("=")[::2] for word in value]
        value = pairs[0][1] if len(pairs) == 1 and not pairs[0][0] else {name or EVERYWHERE: v for name, v in pairs}
    if not isinstance(value, Mapping):
        return _share(value, lowest_counts=False)
    ratios = {str(pattern): _share(share, lowest_counts=True) for pattern, share in value.items()}
    return ratios if EVERYWHERE in ratios else {EVERYWHERE: DEFAULT_RATIO, **ratios}


def _width(value: Any) -> Any:
    return None if value is None else number_or_auto(value)


class KindOptions(Options):
    """Kinds of units that may be removed."""

    groups: ClassVar[Groups] = {"what to remove": ("kinds",)}

    kinds: tuple[Kind, ...] | None = Field(
        default=None,
        min_length=1,
        description="kinds of units to remove (default: all except blocks)",
    )


class BudgetOptions(KindOptions):
    """Number of units to remove, and the groups whose scores are ranked together."""

    groups: ClassVar[Groups] = {
        "what to remove": (
            "ratio", "keep_macs", "keep_params", "keep_latency", "max_latency_ms", "latency_batch_size", "kinds",
            "ignore", "ranking", "min_units", "max_ratio", "round_to", "rounds",
        ),
    }  # fmt: skip

    ratio: Annotated[float | Mapping[str, float], PlainValidator(parse_ratio)] = Field(
        default=DEFAULT_RATIO,
        description=(
            "pruning ratio: share of units to remove\nper layer: 0.3 'down_blocks.0.*=0.1' (the last match counts)"
        ),
    )
    keep_params: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="budget: share of parameters to keep (default: no budget)",
    )
    keep_macs: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description=(
            "budget: share of MACs to keep (default: no budget)\n"
            "with a budget, ratio only weights layers against each other"
        ),
    )
    keep_latency: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description=("budget: share of latency to keep (default: no budget)\nlatency is timed on --device"),
    )
    max_latency_ms: float | None = Field(default=None, gt=0, description="budget: latency in ms (default: no budget)")
    latency_batch_size: int = Field(default=1, ge=1, description="batch size of the timed forward passes")
    round_to: Annotated[int | Literal["auto"] | None, PlainValidator(_width)] = Field(
        default=None,
        description=(
            "round widths to multiples of N (default: no rounding)\nauto: multiples that are fast on --device"
        ),
    )
    ignore: tuple[str, ...] = Field(default=(), description="layers that keep all units, such as 'mid_block.*'")
    ranking: Ranking = Field(
        default="local",
        description=(
            "groups whose scores are ranked together\n"
            "local: each group alone; global: all of one kind; isomorphic: all of one shape and role"
        ),
    )
    min_units: int = Field(
        default=1,
        ge=1,
        description=("minimum number of units kept per group\nwith 1, all removable blocks may be removed"),
    )
    max_ratio: float | None = Field(
        default=None, gt=0, le=1, description="maximum share of units removed per group (default: no limit)"
    )
    rounds: int = Field(default=1, ge=1, description="number of pruning steps, with new scores for each")

    @field_validator("max_latency_ms")
    @classmethod
    def _one_latency(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("keep_latency") is not None:
            raise ValueError("keep_latency and max_latency_ms are two forms of one budget; remove one of them")
        return value

    @field_validator("max_ratio")
    @classmethod
    def _not_below_the_ratio(cls, value: float | None, info: ValidationInfo) -> float | None:
        ratio = info.data.get("ratio")
        largest = max(ratio.values()) if isinstance(ratio, Mapping) else ratio
        if value is not None and largest is not None and value < largest:
            raise ValueError(f"got {value:g}, expected at least the ratio ({largest:g})")
        return value

    def ratio_of(self, layers: Sequence[str]) -> float:
        """Return the ratio of a group whose units are outputs of these layers."""
        if any(matches(pattern, layers) for pattern in self.ignore):
            return 0.0
        if not isinstance(self.ratio, Mapping):
            return self.ratio
        return [share for pattern, share in self.ratio.items() if matches(pattern, layers)][-1]

    def patterns(self) -> list[str]:
        """Return all layer patterns of these options."""
        by_layer = [p for p in self.ratio if p != EVERYWHERE] if isinstance(self.ratio, Mapping) else []
        return [*by_layer, *self.ignore]


def matches(pattern: str, layers: Sequence[str]) -> bool:
    """Return whether one of these layers matches a pattern such as `down_blocks.0.*`."""
    return any(fnmatchcase(layer, pattern) for layer in layers)


def requested_of(options: Mapping[str, Any]) -> str:
    """Return what a plan's options ask to remove or keep, such as `remove 40% of the units of each group`."""
    shares = {"keep_params": "the parameters", "keep_macs": "the MACs", "keep_latency": "the latency"}
    budgets = [f"keep {options[name]:.0%} of {noun}" for name, noun in shares.items() if options.get(name)]
    if options.get("max_latency_ms"):
        budgets.append(f"keep latency below {options['max_latency_ms']:g} ms")
    if budgets:
        return " and ".join(budgets)
    ratio = options.get("ratio")
    ratios = dict(ratio) if isinstance(ratio, Mapping) else {"*": ratio}
    everywhere = ratios.pop("*", None)
    stated = [] if everywhere is None else [f"remove {everywhere:.0%} of the units"]
    return ", ".join([*stated, *(f"{share:.0%} in {pattern}" for pattern, share in ratios.items())])


def _share(value: Any, *, lowest_counts: bool) -> float:
    try:
        share = float(value)
    except (TypeError, ValueError):
        share = -1.0
    if isinstance(value, bool) or not (0 < share < 1 or (lowest_counts and share == 0)):
        raise ValueError(f"got {value!r}, expected a number between 0 and 1, such as {DEFAULT_RATIO}")
    return share
