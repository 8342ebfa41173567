"""Decoding an image file, and doing so in worker processes. Imports no torch, so that workers start at once."""

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
"""Items that are handed out per worker; more would only take memory."""


def decode(file: Any, what: str) -> Image.Image:
    """Decode an image file (a path or a binary stream) whole: upright, 8 bits a channel, grey (L) or RGB.

    EXIF rotation is carried out. 16-bit greys are scaled, not clipped. Transparency is dropped and nothing put behind
    it, as by pytorch-fid, clean-fid and the published preprocessing. Raises DataError that names the file as `what`
    when it cannot be read, has 32-bit pixels, or so many of them that PIL takes it for a decompression bomb.
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


def _upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF data say it is to be seen; damaged EXIF data say nothing."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # PIL raises a different class for each way EXIF data can be damaged
        return image


def _eight_bits(image: Image.Image, format: str | None) -> Image.Image:
    """A new image, grey or RGB; raises ValueError for pixels of 32 bits, whose range nothing tells."""
    if image.mode.startswith("I;16") or (image.mode == "I" and format == "PNG"):
        return Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits and no known range; save it with 8 or 16 bits a channel")
    if image.mode in ("1", "L", "LA"):
        return image.convert("L")
    whole = image.convert("RGBA") if image.mode in ("P", "PA") else image  # PIL warns of transparent P otherwise
    return whole.convert("RGB")


def map_in_order(function: Callable[[A], B], items: Iterable[A], num_workers: int) -> Iterator[B]:
    """`map` in `num_workers` processes (0: in this one); items are taken as they are needed, results keep their order.

    function: importable by name. Raises DataError when a worker is killed.
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
                f"one of {num_workers} processes that decode images was killed; give a smaller num_workers"
            ) from error
        finally:
            for future in waiting:
                future.cancel()
