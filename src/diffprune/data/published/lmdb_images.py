"""Stream the images of an lmdb in the order of its keys: LSUN, and FFHQ by resolution."""

import functools
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from diffprune.data.decoding import decode
from diffprune.data.published.archive_items import Archive, Item
from diffprune.errors import DataError

DATABASE = "data.mdb"
"""File name of the database of an lmdb."""

NUM_PER_FOLDER = 10_000
"""Images per folder; millions of files in one folder are slow on many file systems."""

NUM_TRIED = 100
_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}


@contextmanager
def open_database(folder: Path, resolution: int | None) -> Iterator[Archive]:
    """Open the images of an lmdb. resolution: in pixels, if keys start with it; None if every value is an image.

    LSUN's keys are hashes: image i, in their order, is named 0000/0000000 and so on. FFHQ's keys
    `{resolution}-{index:05d}` hold the image index. Raises DataError if lmdb is not installed or finds no images.
    """
    lmdb = _lmdb()
    prefix = b"" if resolution is None else f"{resolution}-".encode()
    try:
        with lmdb.open(str(folder), readonly=True, lock=False, readahead=False) as opened, opened.begin() as reading:
            _check_whole(opened, folder)
            num_images = reading.stat()["entries"] if resolution is None else sum(1 for _ in _keys(reading, prefix))
            if num_images == 0:
                raise DataError(f"{folder} has no images{_resolutions(reading, resolution)}")
            suffix = _suffix(reading, prefix, folder)
            yield Archive(num_images, _items(reading, prefix, suffix))
    except lmdb.Error as error:
        raise DataError(f"{folder} is not a complete lmdb: {error}") from error


def _check_whole(opened: Any, folder: Path) -> None:
    """Raise DataError for a truncated file: reading a missing page would kill the process."""
    needed, size = (opened.info()["last_pgno"] + 1) * opened.stat()["psize"], (folder / DATABASE).stat().st_size
    if size < needed:
        raise DataError(
            f"{folder / DATABASE} is truncated: {size} bytes, expected at least {needed}. Download it again"
        )


def _items(reading: Any, prefix: bytes, suffix: str) -> Iterator[Item]:
    for number, key in enumerate(_keys(reading, prefix)):
        name = f"{number // NUM_PER_FOLDER:04d}/{number:07d}" if not prefix else key[len(prefix) :].decode()
        yield Item(name + suffix, functools.partial(reading.get, key))


def _keys(reading: Any, prefix: bytes) -> Iterator[bytes]:
    with reading.cursor() as cursor:
        if not cursor.set_range(prefix):
            return
        for key in cursor.iternext(keys=True, values=False):
            if not key.startswith(prefix):
                return
            if not prefix or key[len(prefix) :].isdigit():
                yield key


def _suffix(reading: Any, prefix: bytes, folder: Path) -> str:
    """Return the file suffix for the format of the first readable value."""
    for _, key in zip(range(NUM_TRIED), _keys(reading, prefix), strict=False):
        try:
            with Image.open(io.BytesIO(reading.get(key))) as image:
                return _SUFFIXES[image.format or ""]
        except (OSError, KeyError, Image.DecompressionBombError):
            continue
    decode(io.BytesIO(reading.get(next(_keys(reading, prefix)))), f"the first value of {folder}")
    raise DataError(f"{folder} has images of another format than {', '.join(_SUFFIXES)}")


def _resolutions(reading: Any, resolution: int | None) -> str:
    """Return the resolutions that an lmdb has, as the end of an error message."""
    if resolution is None:
        return ""
    resolutions = []
    with reading.cursor() as cursor:
        at_key = cursor.first()
        while at_key:
            head = cursor.key().partition(b"-")[0]
            if head.isdigit():
                resolutions.append(head.decode())
            at_key = cursor.set_range(head + b"." if head.isdigit() else cursor.key() + b"\x00")
    known = f"; it has {', '.join(resolutions)}" if resolutions else "; its keys are not RESOLUTION-INDEX"
    return f" of resolution {resolution}{known}"


def _lmdb() -> Any:
    try:
        import lmdb
    except ImportError as error:
        raise DataError("an lmdb needs the package lmdb. Run pip install 'diffprune[lsun]'") from error
    return lmdb
