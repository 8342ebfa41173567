"""Checkpoint files by path or URL: downloaded beside the result, and checked by their SHA-256."""

import hashlib
import http.client
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.request import urlopen

from diffprune.errors import FolderError, ModelError, OptionError
from diffprune.runs.progress import progress

_CHUNK = 1 << 20
_TIMEOUT_S = 60


def is_url(source: str) -> bool:
    """Whether a source is an address rather than a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", source) is not None


def check_source(source: str, sha256: str | None) -> None:
    """Raise OptionError for an address that is not served or has no checksum."""
    if not is_url(source):
        return
    if not source.lower().startswith(("http://", "https://")):
        raise OptionError(f"{source}: expected an http or https address, or a path")
    if sha256 is None:
        raise OptionError(
            f"sha256: missing; a download is checked by it. Give the one published with {source}, or download the "
            "file yourself and give its path"
        )


@contextmanager
def fetched(source: str, *, sha256: str | None, beside: Path | None) -> Iterator[Path]:
    """Yield the file of a path or an http(s) address; a download is gone afterwards.

    sha256: hexadecimal; None leaves a local file unchecked. beside: folder that takes the download; None takes the
    system's folder for temporary files.
    Raises OptionError for an address without a checksum, ModelError when the file cannot be had or is another one.
    """
    check_source(source, sha256)
    if not is_url(source):
        path = Path(source)
        if sha256 is not None and path.is_file():
            with path.open("rb") as file:
                _compare(source, _copied(file, None, source, path.stat().st_size), sha256)
        yield path
        return
    assert sha256 is not None
    with tempfile.TemporaryDirectory(dir=beside, prefix=".download.") as folder:
        path = Path(folder) / (Path(source.partition("?")[0]).name or "file")
        _compare(source, _download(source, path), sha256)
        yield path


def _download(url: str, path: Path) -> str:
    """Write a file; returns its SHA-256."""
    try:
        answer = urlopen(url, timeout=_TIMEOUT_S)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ModelError(f"cannot download {url}: {error}") from error
    try:
        with answer, path.open("wb") as file:
            return _copied(answer, file, url, int(answer.headers.get("Content-Length") or 0))
    except (OSError, http.client.HTTPException) as error:
        if getattr(error, "errno", None) is not None and not isinstance(error, ConnectionError | TimeoutError):
            raise FolderError(f"cannot write the download of {url}: {error}") from error
        raise ModelError(f"the download of {url} broke off: {error}; run the command again") from error


def _copied(source: BinaryIO, target: BinaryIO | None, name: str, size: int) -> str:
    """Read a file to its end, into `target` where there is one; returns its SHA-256."""
    digest = hashlib.sha256()
    total = max(1, -(-size // _CHUNK))
    with progress("download" if target else "checksum", total, "MiB") as advance:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            if target is not None:
                target.write(chunk)
            advance(1, Path(name).name)
    return digest.hexdigest()


def _compare(source: str, found: str, expected: str) -> None:
    if found != expected.lower():
        raise ModelError(
            f"{source} has SHA-256 {found}, expected {expected.lower()}: it is damaged, cut short or another file"
        )
