"""Print a stage's result in the terminal: rows as a table, other values by name, blocks as an indented table."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Column, Table

from diffprune.reporting.formats import cells_of, protocol_of, tables_and_figures, text_of, title_of

WIDTH = 160
"""Columns where standard output is not a terminal."""

KINDS = ("channels", "heads", "neurons", "blocks")
"""Kinds of units, in the order of the columns of blocks."""


def print_result(result: dict[str, Any]) -> None:
    """Print a result on standard output."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    tables, values = tables_and_figures(result)
    for rows in tables:
        console.print(_table(rows))
    width = max((len(title_of(name)) for name in values), default=0)
    for name, value in values.items():
        _print_line(console, f"{title_of(name):<{width}}  {text_of(name, value)}")
    if "blocks" in result:
        console.print(_block_table(result["blocks"]), highlight=False, soft_wrap=True)
    for name, facts in result.get("protocol", {}).items():
        _print_line(console, f"{title_of(name)}: protocol {protocol_of(facts)}")


def _print_line(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One column per field, numbers to the right; costs with their ratio to the first row."""
    names, cells = cells_of(rows)
    numeric = {name for name in names if all(isinstance(row.get(name), int | float | None) for row in rows)}
    columns = [
        Column(title_of(name), overflow="fold", justify="right" if name in numeric else "left") for name in names
    ]
    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for texts in cells:
        table.add_row(*texts)
    return table


def _block_table(rows: list[dict[str, Any]]) -> Table:
    """One row per block, indented below its parent: class, costs, and the units that pruning can remove.

    Equal blocks in sequence share one row.
    """
    kinds = [kind for kind in KINDS if any(kind in row["units"] for row in rows)]
    titles = [title_of("params"), title_of("macs"), *(f"prunable {kind}" for kind in kinds)]
    numeric = [Column(title, justify="right", no_wrap=True) for title in titles]
    table = Table(
        Column("block", no_wrap=True), Column("class", no_wrap=True), *numeric, box=box.SIMPLE_HEAD, pad_edge=False
    )
    depths = {"": -1}
    for run in _equal_runs(rows):
        path = run[0]["path"]
        parent, _, name = path.rpartition(".")
        last = run[-1]["path"].rpartition(".")[2]
        depths[path] = depths[parent] + 1
        label = "  " * depths[path] + (name if len(run) == 1 else f"{name}-{last}, each")
        costs = [text_of(cost, run[0][cost]) for cost in ("params", "macs")]
        table.add_row(label, run[0]["class_name"], *costs, *(str(run[0]["units"].get(kind, "-")) for kind in kinds))
    return table


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
