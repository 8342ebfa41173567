"""Read images of CIFAR-10 and CIFAR-100 from the official archive of pickled batches (Krizhevsky 2009)."""

import functools
import io
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from diffprune.data.published.archive_items import Archive, Item
from diffprune.data.published.pickled_arrays import Bytes, read_array
from diffprune.errors import DataError

SIZE = 32

_MEMBERS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("cifar10", "train"): tuple(f"cifar-10-batches-py/data_batch_{i}" for i in range(1, 6)),
    ("cifar10", "test"): ("cifar-10-batches-py/test_batch",),
    ("cifar100", "train"): ("cifar-100-python/train",),
    ("cifar100", "test"): ("cifar-100-python/test",),
}
"""Files of each split, in the order of the image indices."""


@contextmanager
def open_cifar(archive: Path, name: str, split: str) -> Iterator[Archive]:
    """Open the images of a split, named by index from 00000; the whole split, at most 154 MB, is read into memory.

    Raises DataError if the archive is damaged, or has anything other than arrays of 32x32 RGB images.
    """
    try:
        with tarfile.open(archive) as tar:
            batches = [_batch(tar, member, archive) for member in _MEMBERS[name, split]]
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{archive} is not a complete tar.gz: {error}") from error
    rows = [row for batch in batches for row in batch]
    items = (Item(f"{i:05d}.png", functools.partial(_png, row)) for i, row in enumerate(rows))
    yield Archive(len(rows), items)


def _batch(tar: tarfile.TarFile, member: str, archive: Path) -> Bytes:
    """Return the images of one file, (N, 32, 32, 3)."""
    try:
        file = tar.extractfile(member)
    except KeyError:
        file = None
    if file is None:
        raise DataError(f"{archive} has no {member}. Is it the archive of another data set?")
    rows = read_array(file.read(), "data", f"{member} in {archive}")
    if rows.ndim != 2 or rows.shape[1] != 3 * SIZE * SIZE:
        raise DataError(f"{member} in {archive} has an array of shape {rows.shape}, expected (N, {3 * SIZE * SIZE})")
    return rows.reshape(-1, 3, SIZE, SIZE).transpose(0, 2, 3, 1)


def _png(pixels: Bytes) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.copy()).save(buffer, format="PNG")
    return buffer.getvalue()
