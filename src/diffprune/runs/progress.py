"""Progress of long loops and notices: a bar in a notebook or on a terminal, lines on standard error otherwise."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from diffprune.runs.notebook import NotebookBar, in_notebook
from diffprune.runs.terminal_bars import shared_bars

LINE_EVERY_S = 10.0
REDRAW_EVERY_S = 0.2

Advance = Callable[[int, str], None]
"""Function of the number of newly finished items and a short note to show after the bar."""


@contextmanager
def progress(description: str, total: int, unit: str, *, done: int = 0) -> Iterator[Advance]:
    """Yield a function that reports finished items of `total`, with rate and time left.

    Only rank 0 reports. done: number of items that a resumed run had finished; the rate does not count them.
    """
    show = _in_notebook if in_notebook() else _bar if sys.stderr.isatty() else _lines
    if os.environ.get("RANK", "0") != "0":
        show = _silent
    with show(description, total, unit, done) as advance:
        yield advance


def notify(text: str) -> None:
    """Print one line on standard error of rank 0."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)


@contextmanager
def _silent(description: str, total: int, unit: str, done: int) -> Iterator[Advance]:
    yield lambda count, note: None


@contextmanager
def _bar(description: str, total: int, unit: str, done: int) -> Iterator[Advance]:
    started = time.monotonic()
    with shared_bars() as bars:
        task = bars.add_task(description, total=total, completed=done, unit=unit, note="", rate="")
        finished = 0

        def advance(count: int, note: str = "") -> None:
            nonlocal finished
            finished += count
            rate = finished / max(time.monotonic() - started, 1e-9)
            bars.update(task, advance=count, note=note, rate=f"{rate:.2f}/s")

        try:
            yield advance
        finally:
            if len(bars.tasks) > 1:  # below the bar of all stages, only the running loop is shown
                bars.remove_task(task)


@contextmanager
def _in_notebook(description: str, total: int, unit: str, done: int) -> Iterator[Advance]:
    bar = NotebookBar(f"{description}: {done}/{total} {unit}")
    started = time.monotonic()
    finished, drawn = 0, 0.0

    def advance(count: int, note: str = "") -> None:
        nonlocal finished, drawn
        finished += count
        now = time.monotonic()
        if done + finished < total and now - drawn < REDRAW_EVERY_S:
            return
        drawn = now
        rate = finished / max(now - started, 1e-9)
        remaining_s = (total - done - finished) / max(rate, 1e-9)
        text = f"{description}: {done + finished}/{total} {unit}, {rate:.2f}/s, {remaining_s:.0f} s left  {note}"
        bar.show((done + finished) / max(total, 1), text.rstrip())

    yield advance
    text = f"{description}: {done + finished}/{total} {unit} in {time.monotonic() - started:.1f} s"
    bar.show((done + finished) / max(total, 1), text)


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
