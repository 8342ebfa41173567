"""A stage's result in the terminal: a table where it holds rows, names and values otherwise."""

import sys
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from diffprune.reporting.formats import change_of, protocol_of, text_of, title_of

WIDTH = 160
"""Columns where standard output is no terminal."""


def print_result(result: dict[str, Any]) -> None:
    """Print on standard output."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    plain: dict[str, Any] = {}
    for name, value in result.items():
        if name in ("history", "protocol"):
            continue
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            console.print(_rows(value))
        elif isinstance(value, dict):
            plain |= value
        else:
            plain[name] = value
    width = max((len(title_of(name)) for name in plain), default=0)
    for name, value in plain.items():
        console.print(
            f"{title_of(name):<{width}}  {text_of(name, value)}", highlight=False, markup=False, soft_wrap=True
        )
    for name, facts in result.get("protocol", {}).items():
        line = f"{title_of(name)}: protocol {protocol_of(facts)}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _rows(rows: list[dict[str, Any]]) -> Table:
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(*(Column(title_of(name), overflow="fold") for name in names))
    for row in rows:
        cells = []
        for name in names:
            change = change_of(name, row.get(name), rows[0].get(name))
            cells.append(text_of(name, row.get(name)) + (f" ({change})" if change else ""))
        table.add_row(*cells)
    return table
