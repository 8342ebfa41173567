"""Open an archive of image files as a stream: a folder, a zip, or an lmdb (a folder, or in a zip)."""

import functools
import shutil
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePosixPath

from diffprune.data.published.archive_items import Archive, Item, is_image
from diffprune.data.published.lmdb_images import DATABASE, open_database
from diffprune.errors import DataError, OptionError
from diffprune.runs.atomic_files import atomic_folder

FFHQ_RESOLUTION = 256


def open_archive(
    source: Path, *, scratch: Path, by_resolution: bool, resolution: int | None
) -> AbstractContextManager[Archive]:
    """Open an archive of images.

    scratch: folder to extract the lmdb of a zip to, which can only be read from disk. by_resolution: whether keys of an
    lmdb start with a resolution, as in FFHQ; otherwise every value is an image, as in LSUN. resolution: in pixels; None
    means 256. Raises DataError if there are no images, and OptionError for a resolution without an lmdb.
    """
    keys = (resolution or FFHQ_RESOLUTION) if by_resolution else None
    if source.is_dir():
        database = next((p.parent for p in (source / DATABASE, *source.glob(f"*/{DATABASE}")) if p.is_file()), None)
        if database is not None:
            return open_database(database, keys)
        _check_no_resolution(resolution, source)
        return _files(source)
    if not zipfile.is_zipfile(source):
        raise DataError(f"{source} is neither a folder nor a complete zip file")
    with zipfile.ZipFile(source) as archive:
        inside = next((name for name in archive.namelist() if PurePosixPath(name).name == DATABASE), None)
        if inside is not None:
            _extract(archive, inside, scratch)
    if inside is not None:
        return open_database(scratch, keys)
    _check_no_resolution(resolution, source)
    return _zipped(source)


def _check_no_resolution(resolution: int | None, source: Path) -> None:
    """Raise OptionError for a resolution if the archive is not an lmdb."""
    if resolution is not None:
        raise OptionError(f"resolution: supported for an lmdb, {source} is not one. Leave it out")


@contextmanager
def _files(folder: Path) -> Iterator[Archive]:
    files = sorted(path for path in folder.rglob("*") if is_image(path.relative_to(folder)))
    names = _unique([path.name for path in files], folder)
    yield Archive(
        len(files), (Item(n, functools.partial(_read, p.read_bytes, p)) for n, p in zip(names, files, strict=True))
    )


@contextmanager
def _zipped(source: Path) -> Iterator[Archive]:
    with zipfile.ZipFile(source) as archive:
        members = sorted(name for name in archive.namelist() if is_image(PurePosixPath(name)))
        names = _unique([PurePosixPath(member).name for member in members], source)

        def item(name: str, member: str) -> Item:
            read = functools.partial(archive.read, member)
            return Item(name, functools.partial(_read, read, f"{member} in {source}"))

        yield Archive(len(members), map(item, names, members))


def _read(read: Callable[[], bytes], what: object) -> bytes:
    try:
        return read()
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise DataError(f"{what} cannot be read: {error}") from error


def _unique(names: list[str], source: Path) -> list[str]:
    if not names:
        raise DataError(f"{source} has no images")
    ((twice, count),) = Counter(names).most_common(1)
    if count > 1:
        raise DataError(f"{source} has several images named {twice}. File names must differ, also between folders")
    return names


def _extract(archive: zipfile.ZipFile, member: str, scratch: Path) -> None:
    """Extract an lmdb; a complete one of an interrupted run is kept."""
    if (scratch / DATABASE).exists():
        return
    with atomic_folder(scratch) as partial, archive.open(member) as packed, (partial / DATABASE).open("wb") as file:
        try:
            shutil.copyfileobj(packed, file, 1 << 20)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise DataError(
                f"{member} in {archive.filename} is damaged: {error}. Download the archive again"
            ) from error
