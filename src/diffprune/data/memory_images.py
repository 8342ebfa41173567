"""Images in memory as DATA: a 🤗 or torch data set, a list of images, or a tensor in [-1, 1]."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset
from torchvision.transforms.v2.functional import to_pil_image

from diffprune.data.decoding import decode, upright_8bit
from diffprune.errors import DataError
from diffprune.options.in_memory import InMemory, in_memory

ANNOTATIONS = ("Value", "ClassLabel")
"""Types of the columns of a 🤗 data set that hold labels and captions."""

NUM_HASHED = 1024
"""Images that enter the content hash; of more images, so many evenly spaced ones."""

TOLERANCE = 1e-3
"""How far values may lie outside [-1, 1]: rounding in bfloat16, not another range."""

EXPECTED = (
    "a folder, a parquet file, a dataset id, a datasets.Dataset, a torch Dataset with a length, a list of PIL images, "
    "or a float tensor (N, C, H, W) in [-1, 1]"
)


@dataclass(frozen=True, slots=True)
class MemoryRow:
    """One image of a sequence; `image` reads it."""

    items: Any
    index: int

    def __repr__(self) -> str:
        return f"image {self.index} in memory"

    def image(self, what: str) -> Image.Image:
        """Return the image, upright, 8 bits a channel; raises DataError that names it as `what`."""
        return to_image(image_part(self.read(what)), what)

    def read(self, what: str) -> Any:
        """Return the item; raises DataError where the data set raises anything."""
        try:
            return self.items[self.index]
        except Exception as error:  # a data set of the user can raise anything
            raise DataError(f"{what} cannot be read: {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class MemoryImages:
    """Rows of images in memory. table: the 🤗 data set that they are a column of, None for other sources."""

    rows: Sequence[Any]
    table: Any = None

    def labels(self, source: str) -> list[int]:
        """Return the class of each image; raises DataError where an item is no pair of image and whole number."""
        return [self._extra(i, int, "label (a whole number)", source) for i in range(len(self.rows))]

    def captions(self, source: str) -> list[str]:
        """Return the caption of each image; raises DataError where an item is no pair of image and text."""
        return [self._extra(i, str, "caption (a text)", source) for i in range(len(self.rows))]

    def _extra(self, index: int, kind: type, name: str, source: str) -> Any:
        what = f"image {index} of {source}"
        value = label_part(self.rows[index].read(what))
        if isinstance(value, Tensor | np.generic) and np.ndim(value) == 0:
            value = value.item()
        if not isinstance(value, kind):
            raise DataError(f"{what} has no {name}; give pairs (image, {name.partition(' ')[0]})")
        return value


def data_source(data: Any) -> str:
    """Return DATA as the stages take it: a name as text, images in memory with their description.

    The description holds the number of images and a SHA-256 of their pixels, labels and captions. Items are PIL
    images, paths of image files, float tensors (C, H, W) in [-1, 1], or pairs of one of these with a label or a
    caption. Raises DataError.
    """
    if isinstance(data, InMemory):
        return data
    if isinstance(data, str | os.PathLike):
        return os.fspath(data)
    if isinstance(data, Image.Image):
        data = [data]
    if type(data).__module__.partition(".")[0] == "datasets":
        return _of_table(data)
    if isinstance(data, Tensor):
        return _of_tensor(data)
    sized = (
        hasattr(data, "__len__") and hasattr(data, "__getitem__") and not isinstance(data, IterableDataset | Mapping)
    )
    if not sized or isinstance(data, np.ndarray):
        raise DataError(f"data: got {_type(data)}, expected {EXPECTED}")
    if len(data) == 0:
        raise DataError(f"data: got a {_type(data)} without images")
    rows = [MemoryRow(data, index) for index in range(len(data))]
    return _described(MemoryImages(rows), data, _digest_of_row)


def to_image(item: Any, what: str) -> Image.Image:
    """Return an item as an image, upright, 8 bits a channel; raises DataError that names it as `what`.

    A float tensor (1 or 3, H, W) in [-1, 1] is rounded to 8 bits, as if it had been saved as PNG.
    """
    if isinstance(item, Image.Image):
        return upright_8bit(item, what)
    if isinstance(item, str | os.PathLike):
        return decode(Path(item), what)
    if isinstance(item, Tensor):
        check_pixels(item, 3, what)
        decoded: Image.Image = to_pil_image(
            ((item.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        )
        return decoded
    raise DataError(f"{what} is {_type(item)}, expected a PIL image, a path, or a float tensor (C, H, W) in [-1, 1]")


def image_part(item: Any) -> Any:
    """Return the image of an item that is an image, or a pair of an image and a label or caption."""
    return item[0] if isinstance(item, tuple | list) and len(item) == 2 else item


def label_part(item: Any) -> Any:
    """Return the label or caption of an item; None where it is an image alone."""
    return item[1] if isinstance(item, tuple | list) and len(item) == 2 else None


def check_pixels(pixels: Tensor, ndim: int, what: str) -> None:
    """Raise DataError unless a tensor is ([N,] C, H, W), floating point, with 1 or 3 channels and values in [-1, 1]."""
    expected = "(N, C, H, W)" if ndim == 4 else "(C, H, W)"
    if pixels.ndim != ndim or 0 in pixels.shape:
        raise DataError(f"{what}: got a tensor of shape {tuple(pixels.shape)}, expected {expected}")
    if not pixels.is_floating_point():
        hint = "; convert it with x / 127.5 - 1" if pixels.dtype == torch.uint8 else ""
        raise DataError(f"{what}: got a tensor of {pixels.dtype}, expected floating point in [-1, 1]{hint}")
    if pixels.shape[-3] not in (1, 3):
        raise DataError(f"{what}: got {pixels.shape[-3]} channels in {tuple(pixels.shape)}, expected 1 or 3")
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= -1 - TOLERANCE and high <= 1 + TOLERANCE):  # also where one of them is not a number
        raise DataError(f"{what}: got values from {low:g} to {high:g}, expected [-1, 1]")


def _of_tensor(pixels: Tensor) -> InMemory:
    check_pixels(pixels, 4, "data")
    pixels = pixels.detach().float().cpu()
    rows = [MemoryRow(pixels, index) for index in range(len(pixels))]
    return _described(MemoryImages(rows), pixels, _digest_of_row)


def _of_table(table: Any) -> InMemory:
    from diffprune.data.images import image_column

    if not hasattr(table, "features") or not hasattr(table, "select"):
        named = f" with {', '.join(map(str, table))}" if isinstance(table, Mapping) else ""
        raise DataError(f"data: got {_type(table)}{named}; expected one split, a datasets.Dataset")
    if len(table) == 0:
        raise DataError("data: got a Dataset without images")
    images = image_column(table, "the Dataset")
    others = table.remove_columns(images.column_names)
    annotations = [name for name, feature in others.features.items() if type(feature).__name__ in ANNOTATIONS]
    texts = others.select_columns(annotations) if annotations else None
    return _described(MemoryImages(images, table), table, _digest_of_cell, texts)


def _described(
    images: MemoryImages, data: Any, digest: Callable[[Any, str], bytes], annotations: Any = None
) -> InMemory:
    """Return data with its description. annotations: table of labels and captions, which enter the hash."""
    num = len(images.rows)
    whole = hashlib.sha256(str(num).encode())
    for number in range(min(num, NUM_HASHED)):
        index = number * num // min(num, NUM_HASHED)
        whole.update(digest(images.rows[index], f"image {index} of data"))
        if annotations is not None:
            whole.update(repr(annotations[index]).encode())
    kind = type(data).__name__
    return in_memory(f"{num} image{'s' * (num != 1)}", kind, whole.hexdigest(), images)


def _digest_of_row(row: MemoryRow, what: str) -> bytes:
    """Return the hash of an image and its label; raises DataError for what is no image, not for a damaged one."""
    item = row.read(what)
    image, label = image_part(item), label_part(item)
    try:
        decoded = to_image(image, what)
    except DataError:
        if not isinstance(image, Image.Image | str | os.PathLike):
            raise
        decoded = Image.new("L", (1, 1))  # the stage names it, or leaves it out
    return hashlib.sha256(f"{decoded.mode}{decoded.size}{label!r}".encode() + decoded.tobytes()).digest()


def _digest_of_cell(row: Mapping[str, Any], what: str) -> bytes:
    (cell,) = row.values()
    content = cell["bytes"] if cell.get("bytes") is not None else Path(cell["path"]).read_bytes()
    return hashlib.sha256(content).digest()


def _type(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__.partition('.')[0]}.{kind.__name__}"
