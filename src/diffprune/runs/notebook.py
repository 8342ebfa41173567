"""Show values in a notebook: tables, short numbers, and a progress bar that needs no widgets."""

import sys
from collections.abc import Sequence
from html import escape
from typing import Any

Row = Sequence[str]


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook, which displays HTML."""
    ipython: Any = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and getattr(shell, "kernel", None) is not None


class NotebookBar:
    """A progress bar in the output of a notebook's cell."""

    def __init__(self, text: str) -> None:
        display: Any = __import__("IPython.display", fromlist=["display"])
        self._html = display.HTML
        self._handle: Any = display.display(self._html(escape(text)), display_id=True)

    def show(self, share: float, text: str) -> None:
        """Redraw the bar. share: finished share, from 0 to 1."""
        bar = f'<progress value="{share:.4f}" max="1" style="width: 20em"></progress> {escape(text)}'
        self._handle.update(self._html(f"<div>{bar}</div>"))


def short_number(value: float) -> str:
    """Return a count with three digits and a unit: 10.4M, 6.11G, 512."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def text_table(rows: Sequence[Row]) -> str:
    """Return rows of cells as aligned text."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def html_table(rows: Sequence[Row], caption: str = "") -> str:
    """Return rows of cells as an HTML table; of more than two columns, the first row is the head."""
    headed = len(rows[0]) > 2
    lines = [
        f"<tr>{''.join(_cell(text, head=(headed and number == 0) or i == 0) for i, text in enumerate(row))}</tr>"
        for number, row in enumerate(rows)
    ]
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{title}{''.join(lines)}</table>"


def _cell(text: str, *, head: bool) -> str:
    tag = "th" if head else "td"
    return f'<{tag} style="text-align: left">{escape(text)}</{tag}>'
