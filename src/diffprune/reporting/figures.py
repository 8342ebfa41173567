"""Plots and image grids, as PNG bytes."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from diffprune.data.images import load_image

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
    axes.plot([row["step"] for row in history], [row["loss"] for row in history], color=AFTER, linewidth=1.5)
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
        block = _block(path)
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


def _block(path: str) -> str:
    """The block that a layer belongs to: the entry of a list, or of a list below it in UNets."""
    parts = path.split(".")
    if parts[0] in ("down_blocks", "up_blocks"):
        return ".".join(parts[:4])
    if parts[0] == "mid_block":
        return ".".join(parts[:3])
    return ".".join(parts[:2]) if len(parts) > 2 and parts[1].isdigit() else parts[0]


def _rendered(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144)
    return buffer.getvalue()


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
