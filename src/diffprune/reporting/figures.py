"""Plots and image grids, as PNG bytes."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from matplotlib.figure import Figure
from PIL import Image

from diffprune.data.images import load_image
from diffprune.reporting.formats import block_of

GRID_COLUMNS, GRID_ROWS = 12, 5
BEFORE, AFTER = "#c9d3de", "#2f6f9f"


def image_grid(paths: Sequence[Path]) -> bytes:
    """The first images of a folder side by side, 12 to a row, 5 rows at most."""
    images = [load_image(path).convert("RGB") for path in paths[: GRID_COLUMNS * GRID_ROWS]]
    width, height = max(i.width for i in images), max(i.height for i in images)
    rows = -(-len(images) // GRID_COLUMNS)
    sheet = Image.new("RGB", (GRID_COLUMNS * (width + 2) - 2, rows * (height + 2) - 2), "white")
    for position, image in enumerate(images):
        row, column = divmod(position, GRID_COLUMNS)
        sheet.paste(image, (column * (width + 2), row * (height + 2)))
    scale = max(1, 720 // sheet.width)
    return _png(sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.NEAREST))


def loss_curve(history: Sequence[Mapping[str, float]]) -> bytes:
    """Logged loss by step, on a logarithmic axis."""
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    axes = figure.subplots()
    logged = [row for row in history if "loss" in row]  # a validation before the first step has none
    axes.plot([row["step"] for row in logged], [row["loss"] for row in logged], color=AFTER, linewidth=1.5)
    axes.set(xlabel="optimizer step", ylabel="training loss", yscale="log")
    axes.grid(alpha=0.3, which="both")
    return _rendered(figure)


def quality_by_stage(stages: Sequence[Mapping[str, float]]) -> bytes:
    """SSIM to the original by the stage of timesteps that made the scores, with the relative loss of the stage."""
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    axes = figure.subplots()
    middles = [(stage["first_timestep"] + stage["last_timestep"]) / 2 for stage in stages]
    axes.plot(middles, [stage["ssim"] for stage in stages], color=AFTER, marker="o", label="SSIM to the original")
    axes.plot(
        middles, [stage["relative_loss"] for stage in stages], color="#b5651d", linestyle="--", label="relative loss"
    )
    axes.set(xlabel="timesteps that made the scores (middle of the stage)", ylim=(0, 1.05))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return _rendered(figure)


def removed_by_block(layers: Mapping[str, Sequence[int]]) -> bytes:
    """Parameters of each block before and after, largest last, in the order of the model."""
    before: dict[str, int] = {}
    after: dict[str, int] = {}
    for path, (old, new) in layers.items():
        block = block_of(path)
        before[block] = before.get(block, 0) + old
        after[block] = after.get(block, 0) + new
    names = list(before)[::-1]
    figure = Figure(figsize=(7.2, 0.7 + 0.24 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.barh(names, [before[n] for n in names], color=BEFORE, label="before")
    axes.barh(names, [after[n] for n in names], color=AFTER, height=0.5, label="after")
    for position, name in enumerate(names):
        axes.text(before[name], position, f"  -{1 - after[name] / before[name]:.0%}", va="center", fontsize=8)
    axes.set(xlabel="parameters")
    axes.margins(x=0.12, y=0.01)
    axes.legend(loc="lower right", frameon=False)
    axes.tick_params(axis="y", labelsize=8)
    return _rendered(figure)


def error_by_layer(layers: Sequence[Mapping[str, Any]]) -> bytes:
    """Error of each layer's output on held-out images before and after compensation, in the order of the pass."""
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    axes = figure.subplots()
    for index, label, color in ((0, "sliced", BEFORE), (1, "compensated", AFTER)):
        axes.plot([max(layer["held_out"][index], 1e-12) for layer in layers], color=color, label=label, linewidth=1.5)
    axes.set(xlabel="layer, in the order of the forward pass", ylabel="squared error / target", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, ncols=2)
    return _rendered(figure)


def error_by_ratio(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Relative output error of each part (rows, in the order of the model) at each ratio (columns)."""
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
    axes.set(xlabel="share of units removed from this part alone")
    figure.colorbar(image, ax=axes, label="relative output error")
    return _rendered(figure)


def kept_by_group(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Share of units that a plan keeps of each group, with that of another plan where there is one."""
    names = [f"{row['group']} ({row['units']} {row['kind']})" for row in rows][::-1]
    figure = Figure(figsize=(8.4, 0.9 + 0.2 * len(names)), layout="constrained")
    axes = figure.subplots()
    if any("other_share" in row for row in rows):
        axes.barh(names, [row.get("other_share", 0) for row in rows][::-1], color=BEFORE, label="the other plan")
        axes.barh(names, [row["kept_share"] for row in rows][::-1], color=AFTER, height=0.4, label="this plan")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    else:
        axes.barh(names, [row["kept_share"] for row in rows][::-1], color=AFTER)
    axes.set(xlabel="share of units kept", xlim=(0, 1))
    axes.margins(y=0.01)
    axes.tick_params(axis="y", labelsize=7)
    return _rendered(figure)


def _rendered(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144)
    return buffer.getvalue()


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
