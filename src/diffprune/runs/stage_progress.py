"""Progress over the stages of a recipe: a bar of all stages on a terminal, one line per stage otherwise."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from diffprune.runs.terminal_bars import shared_bars

_starts: list[Callable[[str], None]] = []
"""The function that starts a stage of the running recipe; empty if no recipe runs."""


@contextmanager
def stage_progress(total: int) -> Iterator[None]:
    """Report the stages that `start_stage` names, as k of `total`, on standard error of rank 0."""
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    with (_bar if sys.stderr.isatty() else _lines)(total) as start:
        _starts.append(start)
        try:
            yield
        finally:
            _starts.remove(start)


def start_stage(name: str) -> None:
    """Report the start of a stage, and with it the end of the one before."""
    if _starts:
        _starts[-1](name)


@contextmanager
def _lines(total: int) -> Iterator[Callable[[str], None]]:
    started = 0

    def start(name: str) -> None:
        nonlocal started
        started += 1
        print(f"== stage {started}/{total}: {name}", file=sys.stderr, flush=True)

    yield start


@contextmanager
def _bar(total: int) -> Iterator[Callable[[str], None]]:
    with shared_bars() as bars:
        task: Any = bars.add_task("all stages", total=total, unit="stages", note="", rate="")
        started = 0

        def start(name: str) -> None:
            nonlocal started
            started += 1
            bars.update(task, completed=started - 1, note=f"stage {started}: {name}", refresh=True)

        yield start
        bars.update(task, completed=total, note="")
