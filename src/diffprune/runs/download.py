"""Resumable downloads, verified by checksum, that appear complete or not at all."""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from diffprune.errors import DataError
from diffprune.runs.atomic_files import PARTIAL_SUFFIX
from diffprune.runs.progress import progress

MIB = 1 << 20
TIMEOUT_S = 60.0


def is_url(source: str) -> bool:
    """Return whether a source is an http(s) URL."""
    return source.startswith(("http://", "https://"))


def download(url: str, target: Path, *, md5: str | None) -> None:
    """Download a file, or continue the `target`.part of an interrupted call; an existing target is kept.

    md5: hexadecimal; None skips the check. Raises DataError if the server cannot be reached, the connection ends
    early, or the checksum differs.
    """
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + PARTIAL_SUFFIX)
    try:
        _fetch(url, part)
    except urllib.error.HTTPError as error:
        raise _download_error(url, f"the server returned {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _download_error(url, str(getattr(error, "reason", error))) from error
    if md5 is not None:
        try:
            check_md5(part, md5, url)
        except DataError:
            part.unlink()
            raise
    os.replace(part, target)


def check_md5(file: Path, expected: str, source: str) -> None:
    """Raise DataError unless a file has this MD5 (hexadecimal)."""
    with file.open("rb") as opened:
        actual = hashlib.file_digest(opened, "md5").hexdigest()
    if actual != expected:
        raise DataError(
            f"{source} has MD5 {actual}, expected {expected}: it is damaged or another file. Download the official "
            f"file, or pass --md5 {actual} (or none) to use this one"
        )


def _fetch(url: str, part: Path) -> None:
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        response: Any = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        if error.headers.get("Content-Range") == f"bytes */{done}":  # the part is complete
            return
        part.unlink()
        return _fetch(url, part)
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            done = 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length is not None else None
        _save(response, part, done, total)
    if total is not None and part.stat().st_size < total:
        raise _download_error(url, f"the connection ended after {part.stat().st_size} of {total} bytes")


def _save(response: Any, part: Path, done: int, total: int | None) -> None:
    shown = (done if total is None else total) // MIB
    with (
        progress("download", shown, "MiB", done=done // MIB) as advance,
        part.open("ab" if done else "wb") as file,
    ):
        while chunk := response.read(MIB):
            file.write(chunk)
            advance(file.tell() // MIB - done // MIB, "")
            done = file.tell()
        file.flush()
        os.fsync(file.fileno())


def _download_error(url: str, reason: str) -> DataError:
    return DataError(
        f"cannot download {url}: {reason}. Run the same command again to continue, or download the file yourself and "
        "pass it as --archive"
    )
