"""Downloads: resumed where they were cut off, checked, and in their place only when they are whole."""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from diffprune.errors import DataError
from diffprune.runs.atomic_files import PART
from diffprune.runs.progress import progress

MIB = 1 << 20
TIMEOUT_S = 60.0


def is_url(source: str) -> bool:
    """Whether a source is to be downloaded."""
    return source.startswith(("http://", "https://"))


def download(url: str, target: Path, *, md5: str | None) -> None:
    """Download a file; what an interrupted call has left in `target`.part is continued, a finished one is kept.

    md5: hexadecimal, None where none is published. Raises DataError when the server cannot be reached, stops early
    or sends another file.
    """
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + PART)
    try:
        _fetch(url, part)
    except urllib.error.HTTPError as error:
        raise _failed(url, f"the server answers {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _failed(url, str(getattr(error, "reason", error))) from error
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
        got = hashlib.file_digest(opened, "md5").hexdigest()
    if got != expected:
        raise DataError(
            f"{source} has MD5 {got}, expected {expected}: it is damaged or another file; get the official one, "
            f"or say md5 {got} (or none) if this is what you want"
        )


def _fetch(url: str, part: Path) -> None:
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        answer: Any = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        if error.headers.get("Content-Range") == f"bytes */{done}":  # it was all there
            return
        part.unlink()
        return _fetch(url, part)
    with answer:
        if answer.status != http.HTTPStatus.PARTIAL_CONTENT:
            done = 0
        length = answer.headers.get("Content-Length")
        total = done + int(length) if length is not None else None
        _save(answer, part, done, total)
    if total is not None and part.stat().st_size < total:
        raise _failed(url, f"the connection ended after {part.stat().st_size} of {total} bytes")


def _save(answer: Any, part: Path, done: int, total: int | None) -> None:
    shown = (done if total is None else total) // MIB
    with (
        progress("download", shown, "MiB", done=done // MIB) as advance,
        part.open("ab" if done else "wb") as file,
    ):
        while chunk := answer.read(MIB):
            file.write(chunk)
            advance(file.tell() // MIB - done // MIB, "")
            done = file.tell()
        file.flush()
        os.fsync(file.fileno())


def _failed(url: str, reason: str) -> DataError:
    return DataError(
        f"cannot download {url}: {reason}; the same command continues where it stopped, or download the file "
        "yourself and give it as --archive"
    )
