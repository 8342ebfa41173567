"""Match the images of two folders, or images in memory, by image index, and load matched pairs as tensors."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from diffprune.data.images import image_files, load_image
from diffprune.errors import DataError
from diffprune.options.in_memory import InMemory

ImagePair = tuple[Any, Any]
"""Two files, or rows of images in memory."""

_INDEX = re.compile(r"(\d+)$")


def files_by_index(source: str | Path) -> dict[int, Any]:
    """Map each image index to its file, or to its row of images in memory.

    The index is the number at the end of the file name, or the position in memory. Raises DataError when a name has no
    number, or when two files have the same index.
    """
    if isinstance(source, InMemory):
        return dict(enumerate(source.value.rows))
    files: dict[int, Any] = {}
    for path in image_files(Path(source)):
        match = _INDEX.search(path.stem)
        if match is None:
            raise DataError(f"{path} has no image index; end the name with a number, such as 000012.png")
        index = int(match[1])
        if index in files:
            raise DataError(f"{path} and {files[index]} have the same image index, {index}; rename one of them")
        files[index] = path
    return files


def matched_pairs(images: str | Path, reference: str | Path, num: int | None = None) -> list[ImagePair]:
    """Return the files of equal image index, ordered by index: the first `num` pairs (None: all).

    Raises DataError when an index is in one folder only, or when there are fewer than `num` pairs.
    """
    first, second = files_by_index(images), files_by_index(reference)
    unmatched = sorted(first.keys() ^ second.keys())
    if unmatched:
        shown = ", ".join(map(str, unmatched[:5])) + (", ..." if len(unmatched) > 5 else "")
        raise DataError(
            f"{len(unmatched)} image indices are in only one of {images} ({len(first)} images) and "
            f"{reference} ({len(second)}): {shown}; sample both with the same num"
        )
    if num is not None and num > len(first):
        raise DataError(f"{images} holds {len(first)} images, but num is {num}; set num to at most {len(first)}")
    return [(first[index], second[index]) for index in sorted(first)[:num]]


def load_pairs(pairs: Sequence[ImagePair]) -> tuple[Tensor, Tensor]:
    """Load both sides of the pairs, each (N, C, H, W) in [0, 1]; raises DataError when a pair differs in shape."""
    images, reference = ([_pixels(pair[side]) for pair in pairs] for side in (0, 1))
    for (path, reference_path), image, other in zip(pairs, images, reference, strict=True):
        if image.shape != other.shape:
            raise DataError(
                f"{path} has shape {tuple(image.shape)} and {reference_path} {tuple(other.shape)} (C, H, W); "
                "paired metrics need equal shapes"
            )
    return torch.stack(images), torch.stack(reference)


def _pixels(row: Any) -> Tensor:
    pixels: Tensor = pil_to_tensor(load_image(row, str(row)))
    return pixels.float() / 255
