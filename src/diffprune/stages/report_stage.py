"""Command `report`: write one HTML page about finished stages."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffprune.reporting.report_page import GENERATOR, render
from diffprune.reporting.run_summary import summarize
from diffprune.runs.atomic_files import atomic_write, check_replaceable


def report_stage(folders: Sequence[Path], out: Path, *, title: str) -> dict[str, Any]:
    """Write a report page (HTML) about all finished stages in or below the folders.

    Returns the table of models and the path of the page. Raises FolderError when a folder is missing, when no stage
    is finished, when metrics were computed by different protocols, or when `out` is not a report of diffprune.
    """
    check_replaceable(out, GENERATOR)
    summary = summarize(folders)
    atomic_write(out, render(summary, title))
    return {"models": summary.rows(), "report": str(out)}
