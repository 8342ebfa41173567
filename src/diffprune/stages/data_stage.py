"""Command `data`: extract a published data set from its archive into image files or parquet files."""

import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from diffprune.data.presets import PRESETS
from diffprune.data.published.archive_items import Archive
from diffprune.data.published.archives import open_archive
from diffprune.data.published.cifar import open_cifar
from diffprune.data.published.image_writer import write_images
from diffprune.errors import DataError, OptionError
from diffprune.options import DataOptions
from diffprune.runs.download import Checksum, download, is_url
from diffprune.runs.run_record import Existing, run_record

DOWNLOADS = "download"
"""Subfolder of the archive and its unpacked files; removed when the stage has finished."""


@dataclass(frozen=True)
class _Published:
    """Source of a published data set.

    Attributes:
        url: address of the archive; None if it can only be downloaded by hand, from `page`.
        md5: published MD5 of the archive; None if none is published.
        page: web page of the data set.
    """

    url: str | None
    md5: str | None
    page: str


_PUBLISHED: Mapping[str, _Published] = {
    "cifar10": _Published(
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "cifar100": _Published(
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        "eb9058c3a382ffc7106e4002c42a8d85",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "celeba": _Published(None, "00d2c5bc6d35e252742224ab0c1e8fcb", "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"),
    "lsun-church": _Published(
        "http://dl.yf.io/lsun/scenes/church_outdoor_train_lmdb.zip", None, "https://www.yf.io/p/lsun"
    ),
    "lsun-bedroom": _Published("http://dl.yf.io/lsun/scenes/bedroom_train_lmdb.zip", None, "https://www.yf.io/p/lsun"),
    "ffhq": _Published(None, None, "https://github.com/NVlabs/ffhq-dataset"),
}


def data_stage(
    name: str, archive: str | None, options: DataOptions, out: Path, *, existing: Existing = "refuse"
) -> dict[str, Any]:
    """Extract a published data set into a folder of images or parquet files; an interrupted run resumes.

    archive: file, folder or URL of the archive; None downloads the official archive.
    Raises OptionError for an unknown data set or wrong options, DataError for a missing or damaged archive.
    """
    published = _PUBLISHED.get(name)
    if published is None:
        near = get_close_matches(name, _PUBLISHED, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"supported: {', '.join(_PUBLISHED)}"
        raise OptionError(f"data set: got {name!r}, which is not supported; {hint}")
    _check(name, published, archive, options)
    source = archive or published.url
    inputs = {"archive": source}
    chosen = {"name": name, **options.resolved()}
    with run_record(out, "data", chosen, inputs, existing=existing, neutral=options.neutral, resumable=True) as run:
        if not run.finished_before:
            assert source is not None
            place = run.folder / DOWNLOADS
            with _open(name, _fetched(source, _md5(published, options), place), options, place) as opened:
                written = write_images(opened, run.folder, options)
            shutil.rmtree(place, ignore_errors=True)
            run.result = {
                "num_images": written.num_images,
                "num_corrupt": written.num_corrupt,
                "preprocessing": PRESETS[options.preset].resolved() if options.preset else None,
            }
        return run.result


def _check(name: str, published: _Published, archive: str | None, options: DataOptions) -> None:
    chosen = options.model_fields_set
    mistakes = []
    if "split" in chosen and not name.startswith("cifar"):
        mistakes.append(f"split: applies only to cifar10 and cifar100, not to {name}; leave it out")
    if options.resolution is not None and name != "ffhq":
        mistakes.append(f"resolution: applies only to ffhq, not to {name}; leave it out")
    if archive is None and published.url is None:
        mistakes.append(f"archive: missing; {name} cannot be downloaded directly; download it from {published.page}")
    if archive is not None and not is_url(archive) and Path(archive).is_dir() and options.md5 not in _NO_MD5:
        mistakes.append(f"md5: applies to a file, but {archive} is a folder; leave it out")
    if mistakes:
        raise OptionError("invalid options:\n" + "\n".join(f"  {mistake}" for mistake in mistakes))
    if archive is not None and not is_url(archive) and not Path(archive).exists():
        raise DataError(f"{archive} does not exist; download the archive from {published.page}")


_NO_MD5 = ("published", "none")


_REMEDY = "Run the same command again to continue, or download the file yourself and pass it as --archive"


def _md5(published: _Published, options: DataOptions) -> Checksum | None:
    """Return the MD5 that the archive must have."""
    digits = published.md5 if options.md5 == "published" else options.md5
    return None if digits in (None, "none") else Checksum("md5", digits)


def _fetched(source: str, md5: Checksum | None, place: Path) -> Path:
    """Return the path of the archive, after the download; raise DataError if its MD5 is wrong."""
    if is_url(source):
        target = place / (source.partition("?")[0].rstrip("/").rpartition("/")[2] or "archive")
        download(source, target, md5, remedy=_REMEDY)
        return target
    path = Path(source)
    if md5 is not None and path.is_file() and (mismatch := md5.mismatch(path)):
        raise DataError(
            f"{source} {mismatch}; it is damaged or another file. "
            "Download it again, or pass --md5 none to skip this check"
        )
    return path


def _open(name: str, source: Path, options: DataOptions, place: Path) -> AbstractContextManager[Archive]:
    if name in ("cifar10", "cifar100"):
        return open_cifar(source, name, options.split)
    return open_archive(source, scratch=place / "lmdb", by_resolution=name == "ffhq", resolution=options.resolution)
