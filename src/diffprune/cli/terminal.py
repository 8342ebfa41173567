"""Print a stage's result in the terminal: rows as a table, other values by name, blocks as a tree."""

import sys
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.tree import Tree

from diffprune.reporting.formats import change_of, protocol_of, text_of, title_of

WIDTH = 160
"""Columns where standard output is not a terminal."""

HIDDEN = ("history", "protocol", "blocks")
"""Entries of a result that have a layout of their own, or that are too long to print."""


def print_result(result: dict[str, Any]) -> None:
    """Print a result on standard output."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    values: dict[str, Any] = {}
    for name, value in result.items():
        if name in HIDDEN:
            continue
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            console.print(_table(value))
        elif isinstance(value, dict):
            values |= value
        else:
            values[name] = value
    width = max((len(title_of(name)) for name in values), default=0)
    for name, value in values.items():
        _print_line(console, f"{title_of(name):<{width}}  {text_of(name, value)}")
    if "blocks" in result:
        console.print(_tree(result["blocks"]), highlight=False, soft_wrap=True)
    for name, facts in result.get("protocol", {}).items():
        _print_line(console, f"{title_of(name)}: protocol {protocol_of(facts)}")


def _print_line(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _table(rows: list[dict[str, Any]]) -> Table:
    """One column per field, numbers to the right; costs with their ratio to the first row."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    numeric = {name for name in names if all(isinstance(row.get(name), int | float | None) for row in rows)}
    columns = [
        Column(title_of(name), overflow="fold", justify="right" if name in numeric else "left") for name in names
    ]
    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        cells = []
        for name in names:
            change = change_of(name, row.get(name), rows[0].get(name))
            cells.append(text_of(name, row.get(name)) + (f" ({change})" if change else ""))
        table.add_row(*cells)
    return table


def _tree(rows: list[dict[str, Any]]) -> Tree:
    """Blocks under their parents with class, costs and units; equal blocks in sequence share one line."""
    root = Tree("blocks: class, parameters, MACs, units that pruning can remove", guide_style="dim")
    nodes = {"": root}
    for run in _equal_runs(rows):
        parent, _, name = run[0]["path"].rpartition(".")
        last = run[-1]["path"].rpartition(".")[2]
        label = name if len(run) == 1 else f"{name}-{last}, each"
        facts = [text_of(cost, run[0][cost]) for cost in ("params", "macs")]
        facts += [f"{num} {kind}" for kind, num in run[0]["units"].items()]
        line = f"[bold]{label}[/bold] [dim]{run[0]['class_name']}[/dim]  {'  '.join(facts)}"
        nodes[run[0]["path"]] = nodes[parent].add(line)
    return root


def _equal_runs(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Group consecutive entries of one list that are equal with everything under them.

    Rows under the second and later entries of a run are left out.
    """
    runs: dict[str, list[dict[str, Any]]] = {}
    shape = {row["path"]: [_facts(r) for r in rows if f"{r['path']}.".startswith(f"{row['path']}.")] for row in rows}
    latest: dict[str, str] = {}
    hidden: list[str] = []
    for row in rows:
        path = row["path"]
        if any(path.startswith(f"{prefix}.") for prefix in hidden):
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
