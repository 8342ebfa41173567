"""An archive of images as a stream: their number, and name and encoded bytes of each."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePath

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Item:
    """One image. name: its path in the output folder, with suffix. read: returns encoded bytes or raises DataError."""

    name: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Archive:
    """An open archive: its images in a fixed order, for one pass."""

    num_images: int
    items: Iterator[Item]


def is_image(path: PurePath) -> bool:
    """Return whether a path in a folder or archive is an image file; hidden files and __MACOSX are not."""
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.name.lower().endswith(SUFFIXES) and not hidden
