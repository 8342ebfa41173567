"""Two processes against one, with one thread each: scoring, sampling and statistics.

    python benchmarks/processes.py --out benchmarks/results/processes

New processes are started each time, two by torchrun. The time is that of the Python stage, between two barriers of all
processes; CPU seconds are summed over processes. Work of the main process alone counts too, such as the latency that
`sample` measures. Needs one idle core per process.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import diffprune
from diffprune.runs.distributed import all_reduce_sum, leave_process_group, process_state
from feature_statistics import random_images, random_weights
from rounds import Seconds, alternate, arguments, faster, medians, pipeline_named, record, seconds

TARGET = 1.8
RESULT = "seconds.json"
LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def score(a: argparse.Namespace, folder: Path) -> None:
    pipeline = pipeline_named(a.model)
    diffprune.plan(pipeline, data=a.data, last_timestep=a.num_timesteps - 1, device="cpu")


def draw(a: argparse.Namespace, folder: Path) -> None:
    size = max(1, a.num_sampled // 8)
    diffprune.sample(
        pipeline_named(a.model), folder / "drawn", num=a.num_sampled, steps=a.steps, batch_size=size, device="cpu"
    )


def embed(a: argparse.Namespace, folder: Path) -> None:
    inputs, size = folder.parent, max(1, a.num_embedded // 8)
    diffprune.stats(inputs / "images", inception_weights=inputs / "weights.pth", batch_size=size, device="cpu")


STAGES: dict[str, Callable[[argparse.Namespace, Path], None]] = {
    "scoring": score, "sampling": draw, "statistics": embed,
}  # fmt: skip


def run_rank(a: argparse.Namespace) -> None:
    """Run the work as one of the processes; the main process writes wall and CPU seconds of all."""
    state = process_state("cpu")

    def work() -> None:
        STAGES[a.work](a, a.folder)
        state.wait_for_everyone()

    state.wait_for_everyone()
    elapsed = seconds(work)
    cpu = float(all_reduce_sum(torch.tensor(elapsed.cpu, dtype=torch.float64), "cpu"))
    if state.is_main_process:
        (a.folder / RESULT).write_text(json.dumps([elapsed.wall, cpu]))
    leave_process_group()


def launched(work: str, num_processes: int, folder: Path) -> Seconds:
    """Measure a stage in this number of processes. folder: a new one inside the folder of images and weights."""
    folder.mkdir()
    launcher = [*LAUNCHER, str(num_processes)] if num_processes > 1 else []
    words = [*sys.argv[1:], "--work", work, "--folder", str(folder)]
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *launcher, __file__, *words], check=True, env={**os.environ, **threads})
    return Seconds(*json.loads((folder / RESULT).read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="digits")
    parser.add_argument("--data", default="digits")
    parser.add_argument(
        "--num-timesteps", type=int, default=200, help="maximum number of scored timesteps, on 128 images"
    )
    parser.add_argument("--num-sampled", type=int, default=512)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--num-embedded", type=int, default=256)
    parser.add_argument("--work", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    a = arguments(parser, {"num_timesteps": 4, "num_sampled": 16, "steps": 4, "num_embedded": 8})
    if a.work is not None:
        run_rank(a)
        return
    found, rows = {}, []
    with TemporaryDirectory() as work_folder:
        random_weights(Path(work_folder) / "weights.pth")
        random_images(Path(work_folder) / "images", a.num_embedded, 32)
        folders = (Path(work_folder) / f"part-{number}" for number in count())
        for work in STAGES:
            ways = {f"{work}, one process": 1, f"{work}, two processes": 2}
            measures = {way: lambda work=work, num=num: launched(work, num, next(folders)) for way, num in ways.items()}
            found |= alternate(measures, a.rounds)
            one, two = (medians(found)[way] for way in ways)
            rows.append(faster(f"two processes against one, {work}", two, one, TARGET))
    record("processes", a, found, rows, threads=1)


if __name__ == "__main__":
    main()
