"""Results of the public functions: figures and report pages, shown as tables in a shell or a notebook."""

import html
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffprune.reporting.formats import cells_of, tables_and_figures, text_of, title_of
from diffprune.runs.notebook import html_table, text_table


class Results(dict[str, Any]):
    """Figures by name, as run.json holds them."""

    def __repr__(self) -> str:
        return "\n".join(text_table(rows) for rows in self._tables()) or "no figures"

    def _repr_html_(self) -> str:
        return "".join(html_table(rows) for rows in self._tables())

    def _tables(self) -> list[list[list[str]]]:
        """Return one table per list of rows, and one of all other figures."""
        tables, figures = tables_and_figures(self)
        shown = [_of_rows(rows) for rows in tables]
        lines = [[title_of(name), text_of(name, value)] for name, value in figures.items()]
        return [*shown, lines] if lines else shown


@dataclass(frozen=True)
class ReportPage(os.PathLike[str]):
    """A report: the path of its page, and its table of models. A notebook shows the page itself."""

    path: Path
    models: Sequence[Mapping[str, Any]] = field(repr=False)

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"ReportPage({str(self.path)!r}, {len(self.models)} models)"

    def _repr_html_(self) -> str:
        page = html.escape(self.path.read_text(encoding="utf-8"), quote=True)
        return f'<iframe srcdoc="{page}" width="100%" height="800" style="border: 0"></iframe>'


def _of_rows(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    names, cells = cells_of(rows)
    return [[title_of(name) for name in names], *cells]
