"""Choose the quality and cost metrics of a Pareto plot, and find its frontier."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

QUALITIES = {
    "fid": False, "frechet_distance": False, "kid_mean": False, "lpips": False, "clip_score": True, "ssim": True,
}  # fmt: skip
"""Quality metrics, the preferred first -> whether higher is better."""

COSTS = ("macs", "latency_ms")

FEWEST_MODELS = 3
"""Fewer points say nothing that the table does not."""


@dataclass(frozen=True)
class ModelPoint:
    """One model of a Pareto plot."""

    model: str
    cost: float
    quality: float
    higher_is_better: bool

    def dominates(self, other: "ModelPoint") -> bool:
        """Return whether this model is at least as good and as cheap as the other, and better or cheaper."""
        sign = 1 if self.higher_is_better else -1
        at_least = self.cost <= other.cost and sign * self.quality >= sign * other.quality
        return at_least and (self.cost, self.quality) != (other.cost, other.quality)


@dataclass(frozen=True)
class ParetoPlot:
    """Points of one cost metric against one quality metric."""

    cost: str
    quality: str
    points: Sequence[ModelPoint]


def pareto_plots(rows: Sequence[Mapping[str, Any]]) -> list[ParetoPlot]:
    """Return one plot per cost metric that every row has; none below `FEWEST_MODELS` rows or without a quality.

    rows: `model` and metrics by name.
    """
    quality = next((name for name in QUALITIES if all(row.get(name) is not None for row in rows)), None)
    if quality is None or len(rows) < FEWEST_MODELS:
        return []
    return [
        ParetoPlot(cost, quality, [ModelPoint(r["model"], r[cost], r[quality], QUALITIES[quality]) for r in rows])
        for cost in COSTS
        if all(row.get(cost) is not None for row in rows)
    ]


def frontier(points: Sequence[ModelPoint]) -> list[ModelPoint]:
    """Return the points that no other point dominates."""
    return [point for point in points if not any(other.dominates(point) for other in points)]
