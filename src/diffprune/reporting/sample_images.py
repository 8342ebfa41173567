"""Sampled images of a report: SSIM to the original, worst and median pair, and embedded PNGs."""

import io
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from diffprune.data.images import load_image
from diffprune.errors import DataError
from diffprune.evaluation.image_pairs import files_by_index, load_pairs, matched_pairs
from diffprune.evaluation.paired_metrics import ssim

NUM_SCORED = 1024
"""Image pairs that SSIM is computed of, the lowest indices first."""

NUM_SHOWN, FEWEST_SHOWN = 36, 4
PIXEL_BUDGET = 2_000_000
"""Pixels of the gallery over all models; of larger images fewer are shown."""

LARGEST_SIDE, SMALLEST_SIDE = 256, 96
"""Longer side in pixels: larger images are reduced before they are embedded, smaller ones are enlarged on the page."""

_BATCH = 64


@dataclass(frozen=True)
class PairScores:
    """SSIM of a model's images to the original's images of the same index, by index."""

    by_index: Mapping[int, float]

    @property
    def ranking(self) -> list[int]:
        """Image indices, the lowest SSIM first; equal values by index."""
        return sorted(self.by_index, key=lambda index: (self.by_index[index], index))

    @property
    def worst(self) -> int:
        """Index of the lowest SSIM."""
        return self.ranking[0]

    @property
    def median(self) -> int:
        """Index of the median SSIM; of an even number of pairs the lower of the middle two."""
        return self.ranking[(len(self.by_index) - 1) // 2]


@dataclass(frozen=True)
class EmbeddedImage:
    """One image as a data URI, with its size on the page in CSS pixels."""

    source: str
    width: int
    height: int
    pixelated: bool


def pair_scores(images: Path, original: Path) -> PairScores | None:
    """Score the first `NUM_SCORED` images against the original's; None where the folders do not pair up."""
    scores: dict[int, float] = {}
    try:
        pairs = matched_pairs(images, original)[:NUM_SCORED]
        indices = sorted(files_by_index(images))[:NUM_SCORED]
        for start in range(0, len(pairs), _BATCH):
            values = ssim(*load_pairs(pairs[start : start + _BATCH])).tolist()
            scores |= dict(zip(indices[start : start + _BATCH], values, strict=True))
    except DataError:  # another number or size of images: the page shows them without SSIM
        return None
    return PairScores(scores)


def shown_indices(
    files: Sequence[Mapping[int, Path]], scores: Sequence[PairScores | None], num_models: int
) -> list[int]:
    """Return the image indices to embed, ascending: worst and median of each model, the last model first, then others.

    files: image index -> file, one mapping per model; an index that is not in all of them is left out. The number of
    indices follows from `PIXEL_BUDGET`.
    """
    common = sorted(set.intersection(*(set(model) for model in files)))
    if not common:
        return []
    width, height = _embedded_size(load_image(files[0][common[0]]), LARGEST_SIDE)
    num = min(max(PIXEL_BUDGET // (width * height * num_models), FEWEST_SHOWN), NUM_SHOWN)
    ranked = [index for some in reversed(scores) if some is not None for index in (some.worst, some.median)]
    return sorted([index for index in dict.fromkeys([*ranked, *common]) if index in common][:num])


def embed_image(path: Path, smallest_side: int = SMALLEST_SIDE, largest_side: int = LARGEST_SIDE) -> EmbeddedImage:
    """Embed an image as PNG: reduced to `largest_side`, or enlarged by a whole factor to `smallest_side` CSS pixels."""
    image = load_image(path)
    image = image.convert("L" if image.mode == "L" else "RGB")
    size = _embedded_size(image, largest_side)
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    factor = -(-smallest_side // max(size))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    source = "data:image/png;base64," + b64encode(buffer.getvalue()).decode()
    return EmbeddedImage(source, size[0] * factor, size[1] * factor, pixelated=factor > 1)


def _embedded_size(image: Image.Image, largest_side: int) -> tuple[int, int]:
    scale = min(1.0, largest_side / max(image.size))
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))
