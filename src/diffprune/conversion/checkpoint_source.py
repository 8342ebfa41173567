"""Open a checkpoint by path or URL: a download goes to a temporary folder and is checked by its SHA-256."""

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
    """Return whether a source is a URL and not a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", source) is not None


def check_source(source: str, sha256: str | None) -> None:
    """Raise OptionError for a URL that is not http(s) or has no checksum."""
    if not is_url(source):
        return
    if not source.lower().startswith(("http://", "https://")):
        raise OptionError(f"{source}: expected an http or https URL, or a path")
    if sha256 is None:
        raise OptionError(
            f"sha256: missing, a download must be verified. Pass the checksum published with {source}, or download the "
            "file yourself and pass its path"
        )


@contextmanager
def fetched(source: str, *, sha256: str | None, folder: Path | None) -> Iterator[Path]:
    """Yield the local path of a path or an http(s) URL; a download is deleted afterwards.

    sha256: hexadecimal; None skips the check of a local file. folder: where the download goes; None is the system's
    folder for temporary files.
    Raises OptionError for a URL without a checksum, ModelError if the download fails or the checksum differs.
    """
    check_source(source, sha256)
    if not is_url(source):
        path = Path(source)
        if sha256 is not None and path.is_file():
            with path.open("rb") as file:
                _compare(source, _copy(file, None, source, path.stat().st_size), sha256)
        yield path
        return
    assert sha256 is not None
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download.") as temporary:
        path = Path(temporary) / (Path(source.partition("?")[0]).name or "file")
        _compare(source, _download(source, path), sha256)
        yield path


def _download(url: str, path: Path) -> str:
    """Download to a file and return its SHA-256."""
    try:
        response = urlopen(url, timeout=_TIMEOUT_S)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ModelError(f"cannot download {url}: {error}") from error
    try:
        with response, path.open("wb") as file:
            return _copy(response, file, url, int(response.headers.get("Content-Length") or 0))
    except (OSError, http.client.HTTPException) as error:
        if getattr(error, "errno", None) is not None and not isinstance(error, ConnectionError | TimeoutError):
            raise FolderError(f"cannot write the download of {url}: {error}") from error
        raise ModelError(f"the download of {url} was interrupted: {error}; run the command again") from error


def _copy(source: BinaryIO, target: BinaryIO | None, name: str, size: int) -> str:
    """Read a file to its end, copy it to `target` (None: nowhere), and return its SHA-256."""
    digest = hashlib.sha256()
    total = max(1, -(-size // _CHUNK))
    with progress("download" if target else "checksum", total, "MiB") as advance:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            if target is not None:
                target.write(chunk)
            advance(1, Path(name).name)
    return digest.hexdigest()


def _compare(source: str, actual: str, expected: str) -> None:
    if actual != expected.lower():
        raise ModelError(
            f"{source} has SHA-256 {actual}, expected {expected.lower()}: it is damaged, truncated or another file. "
            "Download it again, or correct --sha256"
        )
