"""Write a stream of images to a folder of image files or of parquet files, resumable, in constant memory."""

import io
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from diffprune.data.decoding import decode, map_in_order
from diffprune.data.presets import PRESETS
from diffprune.data.published.archive_items import Archive, Item
from diffprune.errors import DataError
from diffprune.options.data_options import DataOptions
from diffprune.options.image_options import SizedPreset
from diffprune.runs.atomic_files import atomic_file, atomic_write, read_json, write_json
from diffprune.runs.progress import progress

CORRUPT = "corrupt.json"
"""Names of the skipped images, each with its error."""

NUM_PER_FILE = 10_000
NUM_PER_ROW_GROUP = 100
"""Images per parquet file (a resumed run keeps complete files) and per row group (one is in memory at a time)."""

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Written:
    """Number of images in a folder, and number of unreadable ones that were skipped."""

    num_images: int
    num_corrupt: int


@dataclass(frozen=True)
class _Encoded:
    """One image as it will be stored, or its error."""

    name: str
    content: bytes | DataError


def write_images(archive: Archive, folder: Path, options: DataOptions) -> Written:
    """Write every image that is not in `folder` yet; each image is decoded once, to find corrupt ones.

    Images keep their bytes; with a preset they are preprocessed and stored as PNG. Raises DataError for a corrupt image
    unless `on_corrupt` is `skip`, for an image that does not fit the preset, and if no image can be read.
    """
    write = _write_files if options.format == "folder" else _write_parquet
    with progress("images", archive.num_images, "images") as advance:
        write(archive.items, folder, options, lambda count: advance(count, ""))
    os.sync()
    num_corrupt = len(_corrupt(folder))
    if num_corrupt == archive.num_images:
        raise DataError(f"none of the {num_corrupt} images can be read. The errors are in {folder / CORRUPT}")
    return Written(archive.num_images - num_corrupt, num_corrupt)


Advance = Callable[[int], None]


def _write_files(items: Iterator[Item], folder: Path, options: DataOptions, advance: Advance) -> None:
    def missing() -> Iterator[Item]:
        for item in items:
            path = folder / _stored(item.name, options.preset)
            if path.exists() and path.stat().st_size > 0:  # a power failure can leave empty files
                advance(1)
            else:
                yield item

    for name, content in _readable(missing(), folder, options, advance):
        atomic_write(folder / name, content, durable=False)


def _write_parquet(items: Iterator[Item], folder: Path, options: DataOptions, advance: Advance) -> None:
    import datasets
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    schema = datasets.Features({"image": datasets.Image()}).arrow_schema
    for number, part in enumerate(_chunks(items, NUM_PER_FILE)):
        path = folder / f"images-{number:05d}.parquet"
        if path.exists():
            advance(len(part))
            continue
        with atomic_file(path) as partial_file, ParquetWriter(str(partial_file), schema) as writer:
            for rows in _chunks(_readable(part, folder, options, advance), NUM_PER_ROW_GROUP):
                cells: list[dict[str, Any]] = [{"bytes": content, "path": name} for name, content in rows]
                writer.write_table(pyarrow.table({"image": cells}, schema=schema))


def _readable(
    items: Iterable[Item], folder: Path, options: DataOptions, advance: Advance
) -> Iterator[tuple[str, bytes]]:
    """Yield names and bytes to store; a corrupt image is an error, or it is named in a warning and skipped."""
    encode = partial(_encode, preset=options.preset)
    for image in map_in_order(encode, map(_loaded, items), options.num_workers):
        advance(1)
        if not isinstance(image.content, DataError):
            yield image.name, image.content
        elif options.on_corrupt == "fail":
            raise image.content
        else:
            _log.warning("skipped: %s", image.content)
            write_json(folder / CORRUPT, {**_corrupt(folder), image.name: str(image.content)})


def _loaded(item: Item) -> _Encoded:
    try:
        return _Encoded(item.name, item.read())
    except DataError as error:
        return _Encoded(item.name, error)


def _encode(image: _Encoded, preset: SizedPreset | None) -> _Encoded:
    """Decode an image; with a preset, preprocess it and encode it as PNG."""
    if isinstance(image.content, DataError):
        return image
    try:
        decoded = decode(io.BytesIO(image.content), image.name)
    except DataError as error:
        return _Encoded(image.name, error)
    if preset is None:
        return image
    buffer = io.BytesIO()
    PRESETS[preset](decoded.convert("RGB"), image.name).save(buffer, format="PNG")
    return _Encoded(_stored(image.name, preset), buffer.getvalue())


def _stored(name: str, preset: SizedPreset | None) -> str:
    return name if preset is None else str(PurePosixPath(name).with_suffix(".png"))


def _corrupt(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / CORRUPT)
    except FileNotFoundError:
        return {}
    except (OSError, json.JSONDecodeError) as error:
        raise DataError(f"{folder / CORRUPT} cannot be read: {error}. Remove {folder} and start again") from error


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
