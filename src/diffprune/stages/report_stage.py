"""Stage `report`: one page of what stages left behind."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffprune.reporting.report_page import GENERATOR, render
from diffprune.reporting.run_summary import find
from diffprune.runs.atomic_files import atomic_write, check_replaceable


def report_stage(folders: Sequence[Path], out: Path, *, title: str) -> dict[str, Any]:
    """Write `out` (HTML) from all finished stages in or below the folders; returns its path and the table."""
    check_replaceable(out, GENERATOR)
    findings = find(folders)
    atomic_write(out, render(findings, title))
    return {"models": findings.rows(), "report": str(out)}
