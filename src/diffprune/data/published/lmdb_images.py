"""Images in an lmdb, read in the order of its keys without holding them: LSUN's, and FFHQ's by resolution."""

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
"""The file of an lmdb."""

NUM_PER_FOLDER = 10_000
"""Images that share a folder; millions of files in one folder are slow on many file systems."""

NUM_TRIED = 100
_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}


@contextmanager
def open_database(folder: Path, resolution: int | None) -> Iterator[Archive]:
    """The images of an lmdb. resolution: in pixels, where keys begin with it; None where every value is an image.

    LSUN's keys are hashes: image i, in their order, is called 0000/0000000 and so on. FFHQ's keys
    `{resolution}-{index:05d}` name the image index. Raises DataError when lmdb is not installed or reads no images.
    """
    lmdb = _lmdb()
    prefix = b"" if resolution is None else f"{resolution}-".encode()
    try:
        with lmdb.open(str(folder), readonly=True, lock=False, readahead=False) as opened, opened.begin() as reading:
            _check_whole(opened, folder)
            num_images = reading.stat()["entries"] if resolution is None else sum(1 for _ in _keys(reading, prefix))
            if num_images == 0:
                raise DataError(f"{folder} holds no images{_resolutions(reading, resolution)}")
            suffix = _suffix(reading, prefix, folder)
            yield Archive(num_images, _items(reading, prefix, suffix))
    except lmdb.Error as error:
        raise DataError(f"{folder} is not a whole lmdb: {error}") from error


def _check_whole(opened: Any, folder: Path) -> None:
    """A page that is not on disk would end the process, not raise."""
    needed, there = (opened.info()["last_pgno"] + 1) * opened.stat()["psize"], (folder / DATABASE).stat().st_size
    if there < needed:
        raise DataError(f"{folder / DATABASE} is cut short: {there} bytes, expected at least {needed}; get it again")


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
    """The suffix for files of the kind that the first readable values are."""
    for _, key in zip(range(NUM_TRIED), _keys(reading, prefix), strict=False):
        try:
            with Image.open(io.BytesIO(reading.get(key))) as image:
                return _SUFFIXES[image.format or ""]
        except (OSError, KeyError, Image.DecompressionBombError):
            continue
    decode(io.BytesIO(reading.get(next(_keys(reading, prefix)))), f"the first value of {folder}")
    raise DataError(f"{folder} holds images of a kind other than {', '.join(_SUFFIXES)}")


def _resolutions(reading: Any, resolution: int | None) -> str:
    """What an lmdb holds instead of the wanted resolution."""
    if resolution is None:
        return ""
    found = []
    with reading.cursor() as cursor:
        there = cursor.first()
        while there:
            head = cursor.key().partition(b"-")[0]
            if head.isdigit():
                found.append(head.decode())
            there = cursor.set_range(head + b"." if head.isdigit() else cursor.key() + b"\x00")
    there = f"; there are {', '.join(found)}" if found else "; its keys are not RESOLUTION-INDEX"
    return f" of resolution {resolution}{there}"


def _lmdb() -> Any:
    try:
        import lmdb
    except ImportError as error:
        raise DataError("reading an lmdb needs the package lmdb: pip install 'diffprune[lsun]'") from error
    return lmdb
