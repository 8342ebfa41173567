"""Open a checkpoint by path or URL: a download goes to a temporary folder and is checked by its SHA-256."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffprune.errors import ModelError, OptionError
from diffprune.runs.download import Checksum, download

_REMEDY = "Download it again, or correct --sha256"


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
    checksum = None if sha256 is None else Checksum("sha256", sha256)
    if not is_url(source):
        path = Path(source)
        if checksum is not None and path.is_file() and (mismatch := checksum.mismatch(path)):
            raise ModelError(f"{source} {mismatch}: it is damaged, truncated or another file. {_REMEDY}")
        yield path
        return
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download.") as temporary:
        path = Path(temporary) / (Path(source.partition("?")[0]).name or "file")
        download(source, path, checksum, error=ModelError, remedy=_REMEDY)
        yield path
