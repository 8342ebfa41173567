"""The display of progress bars on a terminal, which all bars at one time share."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_displays: list[Any] = []
"""The display on the terminal; empty if there is none."""


@contextmanager
def shared_bars() -> Iterator[Any]:
    """Yield the display that is on the terminal, a rich `Progress`, or show a new one until the end of the block.

    Bars of a display need the fields `unit`, `rate` and `note`.
    """
    if _displays:
        yield _displays[-1]
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        _displays.append(bars)
        try:
            yield bars
        finally:
            _displays.remove(bars)
