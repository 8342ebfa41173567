"""Progress of long loops on standard error: a bar on a terminal, plain lines otherwise."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_EVERY_S = 10.0

Advance = Callable[[int, str], None]
"""Function of the number of newly finished items and a short note to show after the bar."""


@contextmanager
def progress(description: str, total: int, unit: str, *, done: int = 0) -> Iterator[Advance]:
    """Yield a function that reports finished items of `total`, with rate and time left.

    Only rank 0 reports. done: number of items that a resumed run had finished; the rate does not count them.
    """
    show = _bar if sys.stderr.isatty() else _lines
    if os.environ.get("RANK", "0") != "0":
        show = _silent
    with show(description, total, unit, done) as advance:
        yield advance


@contextmanager
def _silent(description: str, total: int, unit: str, done: int) -> Iterator[Advance]:
    yield lambda count, note: None


@contextmanager
def _bar(description: str, total: int, unit: str, done: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    started = time.monotonic()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, completed=done, note="", rate="")
        finished = 0

        def advance(count: int, note: str = "") -> None:
            nonlocal finished
            finished += count
            rate = finished / max(time.monotonic() - started, 1e-9)
            bar.update(task, advance=count, note=note, rate=f"{rate:.2f}/s")

        yield advance


@contextmanager
def _lines(description: str, total: int, unit: str, done: int) -> Iterator[Advance]:
    started = last = time.monotonic()
    finished = 0

    def advance(count: int, note: str = "") -> None:
        nonlocal finished, last
        finished += count
        now = time.monotonic()
        complete = done + finished >= total
        if not complete and now - last < LINE_EVERY_S:
            return
        last = now
        rate = finished / max(now - started, 1e-9)
        left_s = (total - done - finished) / max(rate, 1e-9)
        line = f"{description}: {done + finished}/{total} {unit}, {rate:.2f}/s, {left_s:.0f} s left"
        print(f"{line}  {note}".rstrip(), file=sys.stderr, flush=True)

    yield advance
