"""GPU benchmarks, each part within ten minutes: the gpu tests, throughput rows, a CIFAR-10 model end to end.

    python benchmarks/gpu_suite.py tests rows --out benchmarks/results/gpu
    python benchmarks/gpu_suite.py original recovery --data train.parquet --out benchmarks/results/gpu

Continues after a failed part and exits with status 1. Writes into OUT: output of pytest (`tests.txt`), results of
`run_all.py` (`rows`), the trained DDPM (`original`), results of `quality.py` for it (`recovery`).
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from run_all import run_table

BENCHMARKS = Path(__file__).parent
ROWS = {
    "sampling": ["--num", "2048", "512", "--batch-size", "256"],
    "training": ["--steps", "200", "60", "--batch-sizes", "256", "128"],
    "scores": ["--rounds", "2"],
    "share": ["--batch-sizes", "1", "64", "--images", "4096", "1024"],
    "feature-statistics": ["--num", "2048"],
}
"""Scripts of `run_all.py` that use a GPU, with their amounts of work."""

ARMS = ("published", "compensated + teacher + soap", "random", "scratch")


def tests(a: argparse.Namespace) -> bool:
    """Run the `gpu` test tier."""
    words = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", BENCHMARKS.parent / "tests"]
    finished = subprocess.run(words, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    (a.out / "tests.txt").write_text(finished.stdout)
    print(finished.stdout[-2000:])
    return finished.returncode == 0


def rows(a: argparse.Namespace) -> bool:
    """Measure throughput against the baselines."""
    options_of = {name: ["--quick"] if a.quick else options for name, options in ROWS.items()}
    return run_table(a.out / "rows", {name: ["--device", a.device, *options] for name, options in options_of.items()})


def original(a: argparse.Namespace) -> bool:
    """Train a DDPM."""
    return _succeeds(
        "-m", "diffprune", "train", "--architecture", a.architecture, "--data", a.data, "--device", a.device,
        "--steps", str(a.steps), "--batch-size", "128", "--learning-rate", "4e-4", "--schedule", "cosine",
        "--warmup-steps", str(a.steps // 20), "--ema-decay", "0.999", "--out", str(a.out / "original"),
    )  # fmt: skip


def recovery(a: argparse.Namespace) -> bool:
    """Prune and recover the DDPM in several ways, for a tenth and a fifth of its training steps."""
    tenth = a.steps // 10
    return _succeeds(
        str(BENCHMARKS / "quality.py"), str(a.out / "original"), "--data", a.data, "--device", a.device,
        "--mixed-precision", "bf16", "--ratio", "0.3", "--batch-size", "128", "--steps", str(2 * tenth),
        "--every", str(tenth // 2), "--milestones", "0", str(tenth), str(2 * tenth), "--num-drawn", str(a.num_drawn),
        "--arms", *ARMS, "--out", str(a.out / "recovery"),
    )  # fmt: skip


def _succeeds(*words: str) -> bool:
    return subprocess.run([sys.executable, *words], check=False).returncode == 0


PARTS: dict[str, Callable[[argparse.Namespace], bool]] = {
    "tests": tests, "rows": rows, "original": original, "recovery": recovery,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--data", help="original, recovery: CIFAR-10's training images")
    parser.add_argument("--architecture", default="ddpm-cifar10", help="original: a built-in name or a config.json")
    parser.add_argument("--steps", type=int, default=3000, help="original: training steps")
    parser.add_argument("--num-drawn", type=int, default=1024, help="recovery: samples per model")
    parser.add_argument(
        "--quick", action="store_true", help="rows: smallest sizes, which only show that the scripts run"
    )
    a = parser.parse_args()
    if {"original", "recovery"} & {*a.parts} and a.data is None:
        parser.error("--data: original and recovery need images")
    a.out.mkdir(parents=True, exist_ok=True)
    succeeded = {part: PARTS[part](a) for part in a.parts}
    print(json.dumps(succeeded))
    sys.exit(not all(succeeded.values()))


if __name__ == "__main__":
    main()
