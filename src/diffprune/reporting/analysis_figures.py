"""Draw the figures of the `analyze` commands, as PNG bytes."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from matplotlib.figure import Figure

from diffprune.reporting.figure_export import ACCENT, AFTER, BEFORE, png_of


def quality_by_stage(stages: Sequence[Mapping[str, float]]) -> bytes:
    """Plot SSIM to the original and relative loss against the timesteps of the scores, one point per stage."""
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    axes = figure.subplots()
    middles = [(stage["first_timestep"] + stage["last_timestep"]) / 2 for stage in stages]
    axes.plot(middles, [stage["ssim"] for stage in stages], color=AFTER, marker="o", label="SSIM to the original")
    axes.plot(
        middles, [stage["relative_loss"] for stage in stages], color=ACCENT, linestyle="--", label="relative loss"
    )
    axes.set(xlabel="timesteps of the scores (middle of the stage)", ylim=(0, 1.05))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return png_of(figure)


def error_by_ratio(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Plot the relative output error as a heat map: parts of the model in rows, pruning ratios in columns."""
    parts = list(dict.fromkeys(row["part"] for row in rows))
    ratios = sorted({row["ratio"] for row in rows})
    errors = {(row["part"], row["ratio"]): row["relative_error"] for row in rows}
    lowest = min((error for error in errors.values() if error > 0), default=1e-12)
    grid = [[max(errors[part, ratio], lowest) for ratio in ratios] for part in parts]
    figure = Figure(figsize=(3.5 + 0.8 * len(ratios), 1.2 + 0.24 * len(parts)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(grid, aspect="auto", norm="log", cmap="viridis")
    for row, part in enumerate(parts):
        for column, ratio in enumerate(ratios):
            color = "black" if cast(float, image.norm(grid[row][column])) > 0.6 else "white"
            axes.text(column, row, f"{errors[part, ratio]:.2g}", ha="center", va="center", fontsize=7, color=color)
    axes.set_xticks(range(len(ratios)), [f"{ratio:g}" for ratio in ratios])
    axes.set_yticks(range(len(parts)), parts, fontsize=8)
    axes.set(xlabel="share of units removed from this part only")
    figure.colorbar(image, ax=axes, label="relative output error")
    return png_of(figure)


def kept_by_group(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Plot the share of units kept per group, for one plan or for two plans side by side."""
    names = [f"{row['group']} ({row['units']} {row['kind']})" for row in rows][::-1]
    figure = Figure(figsize=(8.4, 0.9 + 0.2 * len(names)), layout="constrained")
    axes = figure.subplots()
    if any("other_share" in row for row in rows):
        axes.barh(names, [row.get("other_share", 0) for row in rows][::-1], color=BEFORE, label="other plan")
        axes.barh(names, [row["kept_share"] for row in rows][::-1], color=AFTER, height=0.4, label="this plan")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    else:
        axes.barh(names, [row["kept_share"] for row in rows][::-1], color=AFTER)
    axes.set(xlabel="share of units kept", xlim=(0, 1))
    axes.margins(y=0.01)
    axes.tick_params(axis="y", labelsize=7)
    return png_of(figure)
