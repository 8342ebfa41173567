"""Decoding an image file, and doing so in worker processes. Imports no torch, so that workers start at once."""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from PIL import Image, UnidentifiedImageError

from diffprune.errors import DataError

A = TypeVar("A")
B = TypeVar("B")

NUM_WAITING = 16
"""Items that are handed out per worker; more would only take memory."""


def decode(file: Any, what: str) -> Image.Image:
    """Decode an image file (a path or a binary stream) whole; raises DataError that names it as `what`."""
    try:
        with Image.open(file) as opened:
            return opened.copy()
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{what} is not a readable image: {error}") from error


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
