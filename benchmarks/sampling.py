"""Images per second: the DDIMPipeline of diffusers against `diffprune.sample`, dense and pruned.

    python benchmarks/sampling.py --out benchmarks/results/sampling

The DDIMPipeline is used in the usual way: fp32, eager, batch after batch, each image saved as PNG after its batch. Both
draw the same number of images, with the same batch size and steps, from pipelines in memory. Ours is the whole call,
including the facts of `run.json` (hash of the weights, MACs, latency), which take over a second for any number of
images. The pruned model is the same pipeline pruned by magnitude; its baseline is the dense one.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from diffusers import DDIMPipeline

import diffprune
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

DENSE, PRUNED = 1.8, 3.2
"""Speedups to reach over the baseline, in images per second."""


def plain(pipeline: Any, folder: Path, a: argparse.Namespace, num: int) -> None:
    """Sample with plain diffusers."""
    ddim = DDIMPipeline(pipeline.unet, pipeline.scheduler).to(a.device)
    ddim.set_progress_bar_config(disable=True)
    folder.mkdir()
    for start in range(0, num, a.batch_size):
        size = min(a.batch_size, num - start)
        for i, image in enumerate(ddim(batch_size=size, num_inference_steps=a.steps).images):
            image.save(folder / f"{start + i:06d}.png")


def ours(pipeline: Any, folder: Path, a: argparse.Namespace, num: int) -> None:
    diffprune.sample(pipeline, folder, num=num, steps=a.steps, batch_size=a.batch_size, device=a.device)


def measure(draw: Callable[[Path, argparse.Namespace, int], None], a: argparse.Namespace, num: int) -> Seconds:
    with TemporaryDirectory() as work:
        return seconds(partial(draw, Path(work) / "images", a, num))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--num", type=int, nargs="+", default=[512, 64], help="images of each model")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=64, help="default of `sample`")
    parser.add_argument("--ratio", type=float, default=0.3)
    add_device(parser)
    a = arguments(parser, {"num": [16, 2], "steps": 4, "batch_size": 8}, of_each_model=["num"])
    rows: list[Row] = []
    found: dict[str, list[Seconds]] = {}
    for name, num in zip(a.models, a.num, strict=True):
        pipeline = pipeline_named(name)
        small = diffprune.prune(pipeline, diffprune.plan(pipeline, criterion="magnitude", ratio=a.ratio))
        ways = {
            f"{name}, DDIMPipeline": partial(plain, pipeline),
            f"{name}, dense": partial(ours, pipeline),
            f"{name}, pruned": partial(ours, small),
        }
        for draw in ways.values():
            measure(draw, a, 2)  # warm-up
        found |= alternate({way: partial(measure, draw, a, num) for way, draw in ways.items()}, a.rounds)
        baseline, dense, pruned = (medians(found)[way] for way in ways)
        rows += [
            faster(f"images sampled, {name}, dense", dense, baseline, DENSE, "images/s", num),
            faster(f"images sampled, {name}, pruned at {a.ratio}", pruned, baseline, PRUNED, "images/s", num),
        ]
    record("sampling", a, found, rows)


if __name__ == "__main__":
    main()
