"""A stage's result in the terminal: a table where it holds rows, names and values otherwise."""

import sys
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.tree import Tree

from diffprune.reporting.formats import change_of, protocol_of, text_of, title_of

WIDTH = 160
"""Columns where standard output is no terminal."""


def print_result(result: dict[str, Any]) -> None:
    """Print on standard output."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    plain: dict[str, Any] = {}
    for name, value in result.items():
        if name in ("history", "protocol", "blocks"):
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
    if "blocks" in result:
        console.print(_tree(result["blocks"]), highlight=False, soft_wrap=True)
    for name, facts in result.get("protocol", {}).items():
        line = f"{title_of(name)}: protocol {protocol_of(facts)}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _tree(rows: list[dict[str, Any]]) -> Tree:
    """Blocks below their parents, each with what it costs and can lose; a run of equal ones is one line."""
    root = Tree("blocks", guide_style="dim")
    below = {"": root}
    for run in _runs(rows):
        parent, _, name = run[0]["path"].rpartition(".")
        last = run[-1]["path"].rpartition(".")[2]
        numbers = name if len(run) == 1 else f"{name} to {last}, each"
        facts = [text_of(figure, run[0][figure]) for figure in ("params", "macs")]
        facts += [f"{number} {kind}" for kind, number in run[0]["units"].items()]
        line = f"[bold]{numbers}[/bold] [dim]{run[0]['class_name']}[/dim]  {'  '.join(facts)}"
        below[run[0]["path"]] = below[parent].add(line)
    return root


def _runs(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Entries of one list that follow each other and are equal, with all that is below the first of them."""
    runs: dict[str, list[dict[str, Any]]] = {}
    shape = {row["path"]: [_facts(r) for r in rows if f"{r['path']}.".startswith(f"{row['path']}.")] for row in rows}
    latest: dict[str, str] = {}
    hidden: list[str] = []
    for row in rows:
        path = row["path"]
        if any(path.startswith(f"{gone}.") for gone in hidden):
            continue
        parent, _, name = path.rpartition(".")
        first = latest.get(parent)
        if name.isdigit() and first is not None and shape[first] == shape[path]:
            runs[first].append(row)
            hidden.append(path)
        else:
            runs[path] = [row]
            latest[parent] = path
    return list(runs.values())


def _facts(row: dict[str, Any]) -> tuple[Any, ...]:
    return (row["class_name"], row["params"], row["macs"], row["units"])


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
