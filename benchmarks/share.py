"""Share of saved MACs that saves time: speedup of a forward pass over the reduction factor of its MACs.

    python benchmarks/share.py --out benchmarks/results/share

The dense model and the model pruned by magnitude run in turn, in eval mode without gradients, in the default autocast
dtype of `sample`. MACs include layers and the products inside attention.
"""

import argparse
from functools import partial
from typing import Any

import torch

import diffprune
from diffprune.architectures.families import family_of
from diffprune.compute.autocast import autocast_forward
from diffprune.compute.cost import cost_of
from diffprune.options import InspectOptions
from rounds import MODELS, Row, Seconds, add_device, alternate, arguments, denoiser_named, medians, record, seconds

TARGET = 0.9


@torch.no_grad()
def passes(denoiser: Any, batch_size: int, num: int) -> None:
    inputs = family_of(denoiser).example_inputs(denoiser, batch_size, denoiser.device)
    for _ in range(num):
        denoiser(**inputs)


def seconds_of_pass(denoiser: Any, batch_size: int, num: int) -> Seconds:
    with autocast_forward(InspectOptions(), denoiser, denoiser.device):
        passes(denoiser, batch_size, 2)  # warm-up
        return seconds(lambda: passes(denoiser, batch_size, num)) / num


def macs(denoiser: Any) -> int:
    cost = cost_of(denoiser)
    return cost.macs + cost.attention_macs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--images", type=int, nargs="+", default=[960, 64], help="images per model and round")
    add_device(parser)
    a = arguments(parser, {"images": [64, 16]}, of_each_model=["images"])
    found, rows = {}, []
    for name, num_images in zip(a.models, a.images, strict=True):
        dense = denoiser_named(name)
        plan = diffprune.plan(dense, criterion="magnitude", ratio=a.ratio)
        pair = {"dense": dense, "pruned": diffprune.prune(dense, plan)}
        for denoiser in pair.values():
            denoiser.eval().to(a.device)
        fewer = macs(pair["dense"]) / macs(pair["pruned"])
        for size in a.batch_sizes:
            ways = {f"{name}, {kind}, batch size {size}": denoiser for kind, denoiser in pair.items()}
            num = max(1, num_images // size)
            found |= alternate(
                {way: partial(seconds_of_pass, denoiser, size, num) for way, denoiser in ways.items()}, a.rounds
            )
            before, after = (medians(found)[way] for way in ways)
            rows.append(
                Row(
                    f"share of saved MACs on the clock, {name}, batch size {size}", "x faster",
                    before.wall / after.wall, TARGET, fewer,
                    before.wall / after.wall / fewer, before.cpu / after.cpu / fewer,
                )
            )  # fmt: skip
    record("share", a, found, rows)


if __name__ == "__main__":
    main()
