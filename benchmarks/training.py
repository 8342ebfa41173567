"""Seconds per training step: a plain loop against ours, optionally with teacher and SOAP.

    python benchmarks/training.py --out benchmarks/results/training

The student is the model pruned at RATIO by magnitude. Every way trains the same student on the same images, in turn.
Seconds per step are those of a long run minus those of a short run, over their difference in steps. The plain loop is
the usual one: fp32, torch's AdamW, the EMA of diffusers, gradient clipping. The target compares AdamW with AdamW;
`--ways` records the seconds of other ways too.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch.nn.functional import mse_loss

import diffprune
from diffprune.calibration.calibration_set import images_for
from diffprune.data.images import ImageSet
from diffprune.options import FinetuneOptions
from diffprune.pipelines.diffusion import process_of
from diffprune.planning import Plan
from diffprune.training.trainer import train_denoiser
from rounds import (
    MODELS,
    Row,
    Seconds,
    add_device,
    alternate,
    arguments,
    faster,
    medians,
    pipeline_named,
    record,
    seconds,
)

PLAIN = "plain loop"
WAYS: dict[str, dict[str, Any]] = {
    "AdamW": {"optimizer": "adamw"},
    "AdamW, teacher": {"optimizer": "adamw", "teacher": True},
    "SOAP": {"optimizer": "soap"},
    "SOAP, teacher": {"optimizer": "soap", "teacher": True},
}
COMPARED, TARGET = "AdamW", 1.7
WARMUP_STEPS = 10


def plain(pipeline: Any, small: Any, images: ImageSet, device: str, batch_size: int, steps: int) -> None:
    """Train with a plain loop."""
    model = small.unet.train().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    average = EMAModel(model.parameters(), decay=0.9999)
    loader = torch.utils.data.DataLoader(images, batch_size=batch_size, shuffle=True, drop_last=True)
    batches = iter(loader)
    for _ in range(steps):
        clean = next(batches, None)
        if clean is None:
            batches = iter(loader)
            clean = next(batches)
        clean = clean.to(device)
        noise = torch.randn_like(clean)
        timesteps = torch.randint(pipeline.scheduler.config.num_train_timesteps, (len(clean),), device=device)
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
    device: str,
    batch_size: int,
    steps: int,
    optimizer: str,
    teacher: bool = False,
) -> None:
    options = FinetuneOptions(
        data=images.source, steps=steps, batch_size=batch_size, optimizer=optimizer, device=device, tracker="none",
        checkpoint_every=10**9,
    )  # fmt: skip
    train_denoiser(small.unet, process_of(pipeline), images, options, teacher=pipeline.unet if teacher else None)


def seconds_per_step(train: Callable[[int], None], steps: int) -> Seconds:
    """Return seconds per step: those of a long run minus those of a short one."""
    short, long = (seconds(functools.partial(train, number)) for number in (WARMUP_STEPS, WARMUP_STEPS + steps))
    return (long - short) / steps


def measure(
    train: Callable[..., None], pipeline: Any, plan: Plan, images: ImageSet, device: str, batch_size: int, steps: int
) -> Seconds:
    small = diffprune.prune(pipeline, plan)
    return seconds_per_step(functools.partial(train, pipeline, small, images, device, batch_size), steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--steps", type=int, nargs="+", default=[40, 8], help="measured steps per model and round")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128, 16], help="one per model")
    parser.add_argument("--ways", nargs="+", default=[], choices=WAYS, help=f"our ways in addition to {COMPARED}")
    add_device(parser)
    a = arguments(
        parser, {"steps": [10], "batch_sizes": [8], "models": MODELS[:1]}, of_each_model=["steps", "batch_sizes"]
    )
    found: dict[str, list[Seconds]] = {}
    rows: list[Row] = []
    for name, batch_size, steps in zip(a.models, a.batch_sizes, a.steps, strict=True):
        pipeline = pipeline_named(name)
        images = images_for(process_of(pipeline), a.data)
        plan = diffprune.plan(pipeline, criterion="magnitude", ratio=a.ratio)
        ways = {PLAIN: plain, **{way: functools.partial(ours, **WAYS[way]) for way in (COMPARED, *a.ways)}}
        times = alternate(
            {
                way: functools.partial(measure, train, pipeline, plan, images, a.device, batch_size, steps)
                for way, train in ways.items()
            },
            a.rounds,
        )
        found |= {f"{name}, {way}": each for way, each in times.items()}
        middle = medians(times)
        rows.append(faster(f"training, {name}", middle[COMPARED], middle[PLAIN], TARGET, "steps/s", 1))
    record("training", a, found, rows)


if __name__ == "__main__":
    main()
