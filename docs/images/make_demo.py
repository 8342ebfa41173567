"""Draw docs/images/demo.png from a finished demo: `python docs/images/make_demo.py diffprune-demo`."""

import io
import sys
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from diffprune.data.images import image_files
from diffprune.reporting.figures import image_grid

demo = Path(sys.argv[1])
figure = Figure(figsize=(12, 2.2), layout="constrained")
for name, axes in zip(("original", "pruned", "recovered"), figure.subplots(1, 3), strict=True):
    axes.imshow(Image.open(io.BytesIO(image_grid(image_files(demo / "samples" / name)))))
    axes.set_title(name)
    axes.axis("off")
figure.savefig(Path(__file__).with_name("demo.png"), dpi=110)
