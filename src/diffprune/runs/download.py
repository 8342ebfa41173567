"""Resumable downloads, verified by checksum, that appear complete or not at all."""

import fcntl
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from diffprune.errors import DataError, DiffpruneError
from diffprune.runs.atomic_files import PARTIAL_SUFFIX
from diffprune.runs.progress import progress

MIB = 1 << 20
TIMEOUT_S = 60.0


def is_url(source: str) -> bool:
    """Return whether a source is an http(s) URL."""
    return source.startswith(("http://", "https://"))


@dataclass(frozen=True)
class Checksum:
    """A published checksum. digits: hexadecimal, all of them or the first ones."""

    algorithm: Literal["md5", "sha256"]
    digits: str

    def mismatch(self, file: Path) -> str:
        """Return how a file differs, such as `has MD5 12..., expected 34...`; empty if it does not."""
        digest = hashlib.new(self.algorithm)
        with file.open("rb") as opened, progress("checksum", max(file.stat().st_size // MIB, 1), "MiB") as advance:
            while chunk := opened.read(MIB):
                digest.update(chunk)
                advance(1, file.name)
        if digest.hexdigest().startswith(self.digits.lower()):
            return ""
        name = {"md5": "MD5", "sha256": "SHA-256"}[self.algorithm]
        return f"has {name} {digest.hexdigest()}, expected {self.digits.lower()}"


def download(
    url: str, target: Path, checksum: Checksum | None, *, error: type[DiffpruneError] = DataError, remedy: str
) -> None:
    """Download a file, or continue the `target`.part of an interrupted call; an existing target is kept.

    checksum: None skips the check. Raises `error` if the server cannot be reached, the connection ends early, or the
    checksum differs. remedy: last sentence of its message. Processes that download to the same target do so in turn.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + PARTIAL_SUFFIX)
    with part.open("ab") as locked:
        fcntl.flock(locked, fcntl.LOCK_EX)
        if target.exists():
            part.unlink(missing_ok=True)
            return
        try:
            _fetch(url, part)
            mismatch = "" if checksum is None else checksum.mismatch(part)
        except urllib.error.HTTPError as problem:
            raise error(
                f"cannot download {url}: the server returned {problem.code} {problem.reason}. {remedy}"
            ) from problem
        except (OSError, ValueError, http.client.HTTPException) as problem:
            raise error(f"cannot download {url}: {getattr(problem, 'reason', problem)}. {remedy}") from problem
        finally:
            if part.exists() and part.stat().st_size == 0:
                part.unlink()
        if mismatch:
            part.unlink()
            raise error(f"{url} {mismatch}: it is damaged, truncated or another file. {remedy}")
        os.replace(part, target)


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
        part.write_bytes(b"")
        return _fetch(url, part)
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            done = 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length is not None else None
        _save(response, part, done, total)
    if total is not None and part.stat().st_size < total:
        raise OSError(f"the connection ended after {part.stat().st_size} of {total} bytes")


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
