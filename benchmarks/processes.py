"""Two processes against one: scoring, sampling and statistics, with one thread each.

    python benchmarks/processes.py --out benchmarks/results/processes

Processes are started afresh each time, two of them by torchrun; measured is the stage in Python, from the moment at
which all of them are there until all have ended it. CPU seconds are those of all processes. What one process does alone
counts too, such as the latency that `sample` tells. Needs as many idle cores as processes.
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

ASKED = 1.8
TOLD = "seconds.json"
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
    given, size = folder.parent, max(1, a.num_embedded // 8)
    diffprune.stats(given / "images", inception_weights=given / "weights.pth", batch_size=size, device="cpu")


WORKS: dict[str, Callable[[argparse.Namespace, Path], None]] = {
    "scoring": score, "sampling": draw, "statistics": embed,
}  # fmt: skip


def take_part(a: argparse.Namespace) -> None:
    """Be one of the processes; the first one writes what all of them took."""
    state = process_state("cpu")

    def work() -> None:
        WORKS[a.work](a, a.folder)
        state.wait_for_everyone()

    state.wait_for_everyone()
    took = seconds(work)
    cpu = float(all_reduce_sum(torch.tensor(took.cpu, dtype=torch.float64), "cpu"))
    if state.is_main_process:
        (a.folder / TOLD).write_text(json.dumps([took.wall, cpu]))
    leave_process_group()


def launched(work: str, num_processes: int, folder: Path) -> Seconds:
    """What a stage takes in so many processes. folder: of their own, in the one with images and weights."""
    folder.mkdir()
    launcher = [*LAUNCHER, str(num_processes)] if num_processes > 1 else []
    told = [*sys.argv[1:], "--work", work, "--folder", str(folder)]
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *launcher, __file__, *told], check=True, env={**os.environ, **threads})
    return Seconds(*json.loads((folder / TOLD).read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="digits")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--num-timesteps", type=int, default=200, help="scored, at most, on 128 images")
    parser.add_argument("--num-sampled", type=int, default=512)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--num-embedded", type=int, default=256)
    parser.add_argument("--work", choices=WORKS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    a = arguments(parser, {"num_timesteps": 4, "num_sampled": 16, "steps": 4, "num_embedded": 8})
    if a.work is not None:
        take_part(a)
        return
    found, rows = {}, []
    with TemporaryDirectory() as place:
        random_weights(Path(place) / "weights.pth")
        random_images(Path(place) / "images", a.num_embedded, 32)
        folders = (Path(place) / f"part-{number}" for number in count())
        for work in WORKS:
            ways = {f"{work}, one process": 1, f"{work}, two processes": 2}
            measures = {way: lambda work=work, num=num: launched(work, num, next(folders)) for way, num in ways.items()}
            found |= alternate(measures, a.rounds)
            one, two = (medians(found)[way] for way in ways)
            rows.append(faster(f"two processes against one, {work}", two, one, ASKED))
    record("processes", a, found, rows, threads=1)


if __name__ == "__main__":
    main()
