"""What a step of training costs: a plain loop, ours, and what the teacher and SOAP add.

    python benchmarks/training.py digits --data digits --out benchmarks/results/training-digits

The student is the model pruned at RATIO by magnitude. Every way trains the same student on the same batches, in turn,
for several rounds in one process; the first steps are not counted. Medians of the rounds, in seconds of wall and of CPU
time (the second hardly depends on what else the machine does). The plain loop is what people write: fp32, torch's
AdamW, the EMA of diffusers, clipping.
"""

import argparse
import functools
import json
import platform
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import diffusers
import torch
from diffusers.training_utils import EMAModel
from torch.nn.functional import mse_loss

import diffprune
from diffprune.data.calibration import images_for
from diffprune.data.images import ImageSet
from diffprune.models.loading import load_pipeline
from diffprune.models.process import process_of
from diffprune.options import FinetuneOptions
from diffprune.recovery.trainer import train_denoiser

WAYS: dict[str, dict[str, Any]] = {
    "AdamW": {"optimizer": "adamw"},
    "AdamW, teacher": {"optimizer": "adamw", "teacher": True},
    "SOAP": {"optimizer": "soap"},
    "SOAP, teacher": {"optimizer": "soap", "teacher": True},
}
UNCOUNTED = 10

Times = tuple[float, float]


def plain(pipeline: Any, small: Any, images: ImageSet, a: argparse.Namespace, steps: int) -> None:
    """The loop that people write."""
    model = small.unet.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    average = EMAModel(model.parameters(), decay=0.9999)
    loader = torch.utils.data.DataLoader(images, batch_size=a.batch_size, shuffle=True, drop_last=True)
    batches = iter(loader)
    for _ in range(steps):
        clean = next(batches, None)
        if clean is None:
            batches = iter(loader)
            clean = next(batches)
        noise = torch.randn_like(clean)
        timesteps = torch.randint(pipeline.scheduler.config.num_train_timesteps, (len(clean),))
        noisy = pipeline.scheduler.add_noise(clean, noise, timesteps)
        loss = mse_loss(model(noisy, timesteps).sample, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(model.parameters())


def ours(
    pipeline: Any,
    small: Any,
    images: ImageSet,
    a: argparse.Namespace,
    steps: int,
    optimizer: str,
    teacher: bool = False,
) -> None:
    options = FinetuneOptions(
        data=a.data, steps=steps, batch_size=a.batch_size, optimizer=optimizer, tracker="none", checkpoint_every=10**9
    )
    train_denoiser(small.unet, process_of(pipeline), images, options, teacher=pipeline.unet if teacher else None)


def seconds_per_step(train: Callable[[int], None], steps: int) -> Times:
    """Wall and CPU seconds of a step: of a run, less a short one's."""
    found = []
    for number in (UNCOUNTED, UNCOUNTED + steps):
        wall, cpu = time.perf_counter(), time.process_time()
        train(number)
        found.append((time.perf_counter() - wall, time.process_time() - cpu))
    (short_wall, short_cpu), (long_wall, long_cpu) = found
    return (long_wall - short_wall) / steps, (long_cpu - short_cpu) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--steps", type=int, default=40, help="counted steps of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    a = parser.parse_args()
    pipeline: Any = load_pipeline(a.model)
    images = images_for(process_of(pipeline), a.data)
    plan = diffprune.plan(pipeline, criterion="magnitude", ratio=a.ratio)
    found: dict[str, list[Times]] = {name: [] for name in ("plain loop", *WAYS)}
    for _ in range(a.rounds):
        for name, times in found.items():
            small = diffprune.prune(pipeline, plan, compensate=False)
            way = plain if name == "plain loop" else functools.partial(ours, **WAYS[name])
            times.append(seconds_per_step(functools.partial(way, pipeline, small, images, a), a.steps))
    medians = {name: [median(t[i] for t in times) for i in range(2)] for name, times in found.items()}
    base = medians["plain loop"]
    lines = ["| way | s/step | CPU s/step | times the plain loop's CPU |", "|---|---|---|---|"]
    lines += [f"| {n} | {wall:.3f} | {cpu:.3f} | {cpu / base[1]:.2f} |" for n, (wall, cpu) in medians.items()]
    a.out.mkdir(parents=True, exist_ok=True)
    record = {
        "options": {k: v for k, v in vars(a).items() if k != "out"}, "rounds": found, "medians": medians,
        "date": str(date.today()), "machine": f"{platform.machine()}, CPU", "threads": torch.get_num_threads(),
        "torch": torch.__version__, "diffusers": diffusers.__version__,
    }  # fmt: skip
    (a.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    (a.out / "training.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
