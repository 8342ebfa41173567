"""Decode image files, here or in worker processes. Imports no torch, so that workers start fast."""

import multiprocessing
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from diffprune.errors import DataError

A = TypeVar("A")
B = TypeVar("B")

NUM_WAITING = 16
"""Number of items queued per worker; more would only take memory."""


def decode(file: Any, what: str) -> Image.Image:
    """Decode an image file (a path or a binary stream): upright, 8 bits per channel, grayscale (L) or RGB.

    EXIF rotation is applied. 16-bit grayscale is scaled, not clipped. The alpha channel is dropped without a
    background, as in pytorch-fid, clean-fid and the published preprocessing. Raises DataError that names the file as
    `what` if it cannot be read, has 32-bit pixels, or has so many pixels that PIL suspects a decompression bomb.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as opened:
                opened.load()
                return _eight_bits(_upright(opened), opened.format)
    except (
        OSError, UnidentifiedImageError, ValueError, SyntaxError,
        Image.DecompressionBombError, Image.DecompressionBombWarning,
    ) as error:  # fmt: skip
        raise DataError(f"{what} is not a readable image: {error}") from error


def upright_8bit(image: Image.Image, what: str) -> Image.Image:
    """Return an open image as `decode` returns it; raises DataError that names it as `what`."""
    try:
        image.load()
        return _eight_bits(_upright(image), image.format)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{what} is not a readable image: {error}") from error


def _upright(image: Image.Image) -> Image.Image:
    """Apply the rotation in the EXIF data; damaged EXIF data are ignored."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # PIL raises a different class for each way EXIF data can be damaged
        return image


def _eight_bits(image: Image.Image, format: str | None) -> Image.Image:
    """Return a new image, grayscale or RGB; raises ValueError for 32-bit pixels, whose range is unknown."""
    if image.mode.startswith("I;16") or (image.mode == "I" and format == "PNG"):
        return Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits and an unknown range. Save it with 8 or 16 bits per channel")
    if image.mode in ("1", "L", "LA"):
        return image.convert("L")
    whole = image.convert("RGBA") if image.mode in ("P", "PA") else image  # PIL warns of transparent P otherwise
    return whole.convert("RGB")


def map_in_order(function: Callable[[A], B], items: Iterable[A], num_workers: int) -> Iterator[B]:
    """Map a function over items in `num_workers` processes (0: in this one) and yield the results in order.

    function: importable by name. Items are read only as workers need them. Raises DataError if a worker is killed.
    """
    if num_workers == 0:
        yield from map(function, items)
        return
    waiting: deque[Future[B]] = deque()
    with ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= NUM_WAITING * num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise DataError(
                f"one of {num_workers} worker processes that decode images was killed. Set a smaller num_workers"
            ) from error
        finally:
            for future in waiting:
                future.cancel()
