"""What every archive of images gives: how many there are, and each one's name and encoded bytes, in turn."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePath

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Item:
    """One image. name: a path inside the result, with suffix. read: its encoded bytes; raises DataError."""

    name: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Archive:
    """An opened archive: its images in a fixed order, to be gone through once."""

    num_images: int
    items: Iterator[Item]


def is_image(path: PurePath) -> bool:
    """Whether a file at this path inside a folder or archive counts as an image; hidden ones and macOS's do not."""
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.name.lower().endswith(SUFFIXES) and not hidden
