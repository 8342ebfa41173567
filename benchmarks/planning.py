"""A plan for SDXL's UNet from its config alone, on the meta device, in a fresh process: seconds and peak memory.

    python benchmarks/planning.py --out benchmarks/results/planning

Seconds are of the whole command, including imports; memory is the peak of its process.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from rounds import Row, alternate, arguments, medians, record, seconds

SECONDS, GIGABYTES = 25.0, 1.0
CONFIGS = Path(__file__).parent


COMMAND = """
import sys
from pathlib import Path
from diffprune.cli.main import main
status = main(sys.argv[2:])
Path(sys.argv[1]).write_text(Path("/proc/self/status").read_text())
sys.exit(status)
"""
"""Run a command and save /proc/self/status; `ru_maxrss` would include the memory of the parent process."""


def peak_gb(words: list[str], status: Path) -> float:
    """Run a command in a new process; returns its peak memory in GB. status: file for its /proc/self/status."""
    subprocess.run([sys.executable, "-c", COMMAND, str(status), *words], stdout=subprocess.DEVNULL, check=True)
    peak = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
    assert peak is not None
    return int(peak[1]) * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="sdxl.json", help="file in benchmarks/, or any other")
    parser.add_argument("--ratio", type=float, default=0.3)
    a = arguments(parser, {"config": "cifar10-small.json"})
    peaks: list[float] = []

    def plan() -> None:
        with TemporaryDirectory() as work:
            words = ["plan", str(CONFIGS / a.config), "--ratio", str(a.ratio), "--out", f"{work}/plan.json"]
            peaks.append(peak_gb(words, Path(work) / "status"))

    name = Path(a.config).stem
    found = alternate({name: lambda: seconds(plan)}, a.rounds)
    rows = [
        Row(f"plan of {name}", "s", medians(found)[name].wall, SECONDS, at_most=True),
        Row(f"plan of {name}, peak memory", "GB", median(peaks), GIGABYTES, at_most=True),
    ]
    record("planning", a, found, rows, peaks_gb=peaks)


if __name__ == "__main__":
    main()
