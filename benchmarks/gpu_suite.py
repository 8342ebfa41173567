"""What wants a GPU, each part within ten minutes on one: its tests, the rows that it has, a CIFAR-10 model end to end.

    python benchmarks/gpu_suite.py tests rows --out benchmarks/results/gpu
    python benchmarks/gpu_suite.py original recovery --data train.parquet --out benchmarks/results/gpu

Goes on after a part that fails; the status is 1 then. In folders of OUT: what pytest prints (`tests.txt`), what
`run_all.py` writes (`rows`), the DDPM that is trained (`original`), what `quality.py` writes of it (`recovery`).
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
"""Scripts of `run_all.py` that a GPU serves, and how much each of them is given to do."""

ARMS = ("published", "compensated + teacher + soap", "random", "scratch")


def tests(a: argparse.Namespace) -> bool:
    """The `gpu` tier."""
    words = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", BENCHMARKS.parent / "tests"]
    told = subprocess.run(words, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    (a.out / "tests.txt").write_text(told.stdout)
    print(told.stdout[-2000:])
    return told.returncode == 0


def rows(a: argparse.Namespace) -> bool:
    """Throughput against the baselines."""
    given = {name: ["--quick"] if a.quick else options for name, options in ROWS.items()}
    return run_table(a.out / "rows", {name: ["--device", a.device, *options] for name, options in given.items()})


def original(a: argparse.Namespace) -> bool:
    """Train a DDPM."""
    return _ends_well(
        "-m", "diffprune", "train", "--architecture", a.architecture, "--data", a.data, "--device", a.device,
        "--steps", str(a.steps), "--batch-size", "128", "--learning-rate", "4e-4", "--schedule", "cosine",
        "--warmup-steps", str(a.steps // 20), "--ema-decay", "0.999", "--out", str(a.out / "original"),
    )  # fmt: skip


def recovery(a: argparse.Namespace) -> bool:
    """Prune and recover it in several ways, for a tenth and a fifth of its own steps."""
    tenth = a.steps // 10
    return _ends_well(
        str(BENCHMARKS / "quality.py"), str(a.out / "original"), "--data", a.data, "--device", a.device,
        "--mixed-precision", "bf16", "--ratio", "0.3", "--batch-size", "128", "--steps", str(2 * tenth),
        "--every", str(tenth // 2), "--milestones", "0", str(tenth), str(2 * tenth), "--num-drawn", str(a.num_drawn),
        "--arms", *ARMS, "--out", str(a.out / "recovery"),
    )  # fmt: skip


def _ends_well(*words: str) -> bool:
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
    parser.add_argument("--steps", type=int, default=3000, help="original: of training")
    parser.add_argument("--num-drawn", type=int, default=1024, help="recovery: samples that are judged")
    parser.add_argument("--quick", action="store_true", help="rows: so small that it only shows that the scripts run")
    a = parser.parse_args()
    if {"original", "recovery"} & {*a.parts} and a.data is None:
        parser.error("--data: original and recovery need images")
    a.out.mkdir(parents=True, exist_ok=True)
    ended = {part: PARTS[part](a) for part in a.parts}
    print(json.dumps(ended))
    sys.exit(not all(ended.values()))


if __name__ == "__main__":
    main()
