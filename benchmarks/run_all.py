"""Run all benchmark scripts, each in its own process, and write one table.

    python benchmarks/run_all.py --out benchmarks/results/cpu
    python benchmarks/run_all.py --out /tmp/quick --quick

Writes OUT/table.md and OUT/table.json next to the records of the scripts. A failed script has a row that says so and
makes the exit status 1; a target that is not reached does not. Takes hours on two idle cores.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rounds import facts, table

SCRIPTS = {
    "sampling": "sampling.py", "training": "training.py", "scores": "scores.py",
    "feature-statistics": "feature_statistics.py", "distance": "distance.py", "planning": "planning.py",
    "share": "share.py", "rounding": "rounding.py", "processes": "processes.py",
}  # fmt: skip
"""Name of the record that a script writes -> the script."""


def run(name: str, out: Path, options: Sequence[str]) -> bool:
    """Run a script; returns whether it succeeded."""
    print(f"== {name}", flush=True)
    script = Path(__file__).parent / SCRIPTS[name]
    return subprocess.run([sys.executable, script, "--out", out, *options], check=False).returncode == 0


def run_table(out: Path, scripts: Mapping[str, Sequence[str]]) -> bool:
    """Run scripts by name, each with its options; returns whether all succeeded.

    The table has all records in the folder, also those of earlier calls.
    """
    failed = [name for name, options in scripts.items() if not run(name, out, options)]
    records = [out / f"{name}.json" for name in SCRIPTS if name not in failed]
    rows = [row for record in records if record.exists() for row in json.loads(record.read_text())["rows"]]
    text = table(rows) + "".join(f"| {name} | failed | | | | | |\n" for name in failed)
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(text)
    (out / "table.json").write_text(json.dumps({"rows": rows, "failed": failed, **facts()}, indent=1) + "\n")
    print(text)
    return not failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--rows", nargs="+", default=list(SCRIPTS), choices=SCRIPTS, help="scripts to run")
    parser.add_argument("--quick", action="store_true", help="smallest sizes, which only show that the scripts run")
    a = parser.parse_args()
    sys.exit(not run_table(a.out, dict.fromkeys(a.rows, ["--quick"] if a.quick else [])))


if __name__ == "__main__":
    main()
