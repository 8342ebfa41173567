"""Every benchmark runs and records its rows; how fast anything is, no test says."""

import ast
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
ROWS = {
    "sampling": 4, "training": 1, "scores": 12, "feature-statistics": 2, "distance": 2, "planning": 2, "share": 4,
    "rounding": 4, "processes": 3,
}  # fmt: skip
"""Rows that each script leaves in its quick variant."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_a_benchmark_runs_and_its_figures_are_equal_where_they_must_be(name: str, tmp_path: Path) -> None:
    words = [sys.executable, BENCHMARKS / "run_all.py", "--rows", name, "--quick", "--out", tmp_path]
    assert subprocess.run(words, check=False).returncode == 0
    found = json.loads((tmp_path / "table.json").read_text())
    assert found["failed"] == []
    assert len(found["rows"]) == ROWS[name]
    assert all(math.isfinite(row["ours"]) for row in found["rows"])
    assert all(row["reached"] for row in found["rows"] if "relative difference" in row["row"])
    assert {"date", "machine", "threads", "torch"} <= json.loads((tmp_path / f"{name}.json").read_text()).keys()
    for row in found["rows"]:
        assert row["row"] in (tmp_path / "table.md").read_text()


@pytest.mark.slow
def test_the_gpu_suite_trains_prunes_and_recovers_a_model(tmp_path: Path) -> None:
    given = [
        "--device",
        "cpu",
        "--data",
        "digits",
        "--architecture",
        "ddpm-digits",
        "--steps",
        "20",
        "--num-drawn",
        "16",
    ]
    words = [sys.executable, BENCHMARKS / "gpu_suite.py", "original", "recovery", *given, "--out", tmp_path]
    assert subprocess.run(words, check=False).returncode == 0
    runs = json.loads((tmp_path / "recovery" / "quality.json").read_text())["runs"]
    assert [set(map(int, run["figures"])) for run in runs] == [{0, 1, 2, 3, 4}] * 4


def test_the_readme_names_every_script_that_is_run() -> None:
    told = (BENCHMARKS / "README.md").read_text()
    tree = ast.parse((BENCHMARKS / "run_all.py").read_text())
    scripts = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and str(n.value).endswith(".py")}
    assert len(scripts) == len(ROWS)
    assert [script for script in scripts if f"`{script}`" not in told or not (BENCHMARKS / script).is_file()] == []
