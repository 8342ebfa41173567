"""Stage `report`: one page of what stages left behind."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffprune.records import check_replaceable, write_whole
from diffprune.reporting.findings import find
from diffprune.reporting.page import GENERATOR, render


def report_stage(folders: Sequence[Path], out: Path, *, title: str) -> dict[str, Any]:
    """Write `out` (HTML) from all finished stages in or below the folders; returns its path and the table."""
    check_replaceable(out, GENERATOR)
    findings = find(folders)
    write_whole(out, render(findings, title))
    return {"models": findings.rows(), "report": str(out)}
