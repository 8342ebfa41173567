"""Draw the plots of the report page, as inline SVG."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from diffprune.reporting.figure_export import AFTER, BEFORE, INK, MUTED, page_style, svg_of
from diffprune.reporting.formats import block_of, title_of
from diffprune.reporting.pareto import ModelPoint, frontier

WIDTH_IN = 4.6
"""Narrow, so that text is readable where a phone shows the plot at 360 pixels."""


@page_style
def loss_curve(history: Sequence[Mapping[str, float]], description: str) -> str:
    """Plot the logged training loss against the optimizer step, on a logarithmic axis."""
    figure, axes = _axes(2.2)
    logged = [row for row in history if "loss" in row]  # a validation before the first step has no loss
    axes.plot([row["step"] for row in logged], [row["loss"] for row in logged], color=AFTER, linewidth=1.5)
    axes.set(xlabel="optimizer step", ylabel="training loss")
    _log_axis(axes)
    return svg_of(figure, description)


@page_style
def parameters_by_block(layers: Mapping[str, Sequence[int]], description: str) -> str:
    """Plot the parameters of each block before and after pruning as bars, in the order of the model.

    layers: path of a layer -> its parameters before and after.
    """
    before: dict[str, int] = {}
    after: dict[str, int] = {}
    for path, (old, new) in layers.items():
        block = block_of(path)
        before[block] = before.get(block, 0) + old
        after[block] = after.get(block, 0) + new
    names = list(before)[::-1]
    figure, axes = _axes(0.7 + 0.2 * len(names))
    axes.barh(names, [before[name] for name in names], color=BEFORE, label="before")
    axes.barh(names, [after[name] for name in names], color=AFTER, height=0.45, label="after")
    for position, name in enumerate(names):
        removed = 1 - after[name] / before[name] if before[name] else 0.0
        axes.text(before[name], position, f"  \N{MINUS SIGN}{removed:.0%}", va="center", fontsize=8)
    _count_axis(axes, "parameters", 1e6, "M")
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.12, y=0.01)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    axes.tick_params(axis="y", length=0, labelsize=8)
    return svg_of(figure, description)


@page_style
def error_by_layer(layers: Sequence[Mapping[str, Any]], description: str) -> str:
    """Plot each layer's output error on held-out images before and after compensation, in the order of the pass."""
    figure, axes = _axes(2.4)
    for index, label, color in ((0, "sliced", MUTED), (1, "compensated", AFTER)):
        axes.plot([max(layer["held_out"][index], 1e-12) for layer in layers], color=color, label=label, linewidth=1.5)
    axes.set(xlabel="layer, in the order of the forward pass", ylabel="squared error / target")
    _log_axis(axes)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return svg_of(figure, description)


@page_style
def pareto_plot(points: Sequence[ModelPoint], cost: str, quality: str, description: str) -> str:
    """Plot quality against cost, one labeled point per model, with the Pareto frontier as a line.

    cost, quality: names of the metrics, for the axis labels.
    """
    figure, axes = _axes(3.0)
    best = sorted(frontier(points), key=lambda point: point.cost)
    axes.plot([p.cost for p in best], [p.quality for p in best], color=AFTER, linewidth=1.2, linestyle="--", zorder=1)
    for point in points:
        face = AFTER if point in best else "none"
        axes.scatter([point.cost], [point.quality], s=36, facecolor=face, edgecolor=AFTER, linewidth=1.5, zorder=2)
    middle = sum(axes.get_xlim()) / 2
    for point in points:
        at_right = point.cost > middle
        axes.annotate(
            point.model, (point.cost, point.quality), (-7 if at_right else 7, 0), textcoords="offset points",
            ha="right" if at_right else "left", va="center", color=INK, fontsize=9,
        )  # fmt: skip
    sense = "higher is better" if points[0].higher_is_better else "lower is better"
    axes.set(xlabel=f"{title_of(cost)}, lower is better", ylabel=f"{title_of(quality)}, {sense}")
    if cost == "macs":
        _count_axis(axes, "MACs, lower is better", 1e9, "G")
    axes.grid(linewidth=0.6)
    axes.margins(0.12)
    return svg_of(figure, description)


def _axes(height_in: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    return figure, figure.subplots()


def _count_axis(axes: Axes, label: str, unit: float, symbol: str) -> None:
    """Label the x axis in multiples of a unit, with few enough ticks for a narrow page."""
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / unit:g}{symbol}")


def _log_axis(axes: Axes) -> None:
    """Make the y axis logarithmic, with labels also where it spans less than a decade."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    mantissas = (1, 1.5, 2, 3, 5, 7) if high < 10 * low else (1, 2, 5) if high < 100 * low else (1,)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [mantissa * 10.0**decade for decade in decades for mantissa in mantissas]
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(linewidth=0.6)
