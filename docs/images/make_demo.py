"""Draw docs/images/demo.png from a finished demo: `python docs/images/make_demo.py diffprune-demo`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from diffprune.data.images import image_files, load_image

COLUMNS, ROWS = 12, 5


def image_grid(paths: Sequence[Path]) -> Image.Image:
    """Paste the first images of equal size into one sheet, with a gap of 2 pixels."""
    images = [load_image(path).convert("RGB") for path in paths[: COLUMNS * ROWS]]
    width, height = images[0].size
    sheet = Image.new("RGB", (COLUMNS * (width + 2) - 2, ROWS * (height + 2) - 2), "white")
    for position, image in enumerate(images):
        row, column = divmod(position, COLUMNS)
        sheet.paste(image, (column * (width + 2), row * (height + 2)))
    scale = max(1, 720 // sheet.width)
    return sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.NEAREST)


demo = Path(sys.argv[1])
figure = Figure(figsize=(12, 2.2), layout="constrained")
for name, axes in zip(("original", "pruned", "recovered"), figure.subplots(1, 3), strict=True):
    axes.imshow(image_grid(image_files(demo / "samples" / name)))
    axes.set_title(name)
    axes.axis("off")
figure.savefig(Path(__file__).with_name("demo.png"), dpi=110, bbox_inches="tight", pad_inches=0.02)
