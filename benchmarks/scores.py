"""Diff-Pruning scores: 1,000 fp32 backward passes in a plain loop against ours, in seconds and in units kept.

    python benchmarks/scores.py --out benchmarks/results/scores

Each round draws new calibration images and noises. The plain loop runs one batch at every timestep, with gradients
summed by autograd. It chooses units as published, by the gradients before the first timestep whose loss is below
a share of the largest, and runs on to the last timestep; the record has the number of passes before the threshold. Ours
is the criterion with its defaults, with all timesteps, and both in fp32, on the same images. For the units kept:

- agreement: the share that the full pass keeps too; the target is that of a second full pass, the next round's
- output error right after pruning, not compensated, on held-out images; the target is the worst full pass

Both are means over the rounds.
"""

import argparse
import itertools
from functools import partial
from statistics import mean
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from diffprune.calibration.calibration_set import Calibration, images_for
from diffprune.calibration.make_calibration import make_calibration
from diffprune.criteria.score_pass import weights_of
from diffprune.criteria.scores import Scores, sums_by_unit
from diffprune.groups import Group, find_groups, remove_units
from diffprune.options import PlanOptions
from diffprune.pipelines.diffusion import process_of
from diffprune.planning.budget import Kept, fit
from diffprune.planning.rounds import choose_units
from judge import Judge, split
from rounds import Row, Seconds, add_device, alternate, arguments, faster, medians, pipeline_named, record, seconds

TARGET = 8.0


def plain(denoiser: Any, calibration: Calibration, threshold: float, num_passes: int) -> tuple[dict[str, Tensor], int]:
    """Run the plain loop; returns the summed gradients before the threshold, and the number of passes before it."""
    clean, noise = calibration.clean, calibration.noise
    denoiser.to(clean.device).requires_grad_(True).zero_grad()
    largest, summed, used = 0.0, None, num_passes
    for t in range(num_passes):
        timesteps = torch.full((len(clean),), t, device=clean.device)
        noisy = calibration.scheduler.add_noise(clean, noise, timesteps)
        loss = mse_loss(denoiser(noisy, timesteps).sample, noise)
        largest = max(largest, loss.item())
        if summed is None and loss.item() < threshold * largest:
            summed, used = _gradients(denoiser), t
        loss.backward()
    summed = _gradients(denoiser) if summed is None else summed
    denoiser.zero_grad()
    denoiser.to("cpu")
    return summed, used


def _gradients(denoiser: Any) -> dict[str, Tensor]:
    return {name: p.grad.to("cpu", copy=True) for name, p in denoiser.named_parameters() if p.grad is not None}


WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "default in fp32": {"mixed_precision": "no"},
    "all timesteps": {"timestep_stride": 1},
    "all timesteps in fp32": {"timestep_stride": 1, "mixed_precision": "no"},
}


class Scoring:
    """The ways of one model, and the units that each kept per round."""

    def __init__(self, pipeline: Any, a: argparse.Namespace) -> None:
        self.pipeline, self.denoiser, self.a = pipeline, pipeline.unet.eval(), a
        self.groups: list[Group] = list(find_groups(self.denoiser))
        self.chosen: dict[str, list[Kept]] = {name: [] for name in ("plain loop", *WAYS)}
        self.passes_used: list[int] = []

    def measure(self, way: str) -> Seconds:
        """Choose units in one way, on the images of its next round; returns the seconds."""
        options = PlanOptions(
            criterion="diff-pruning", ratio=self.a.ratio, data=self.a.data, seed=len(self.chosen[way]),
            device=self.a.device, num_calibration_images=self.a.num_images, batch_size=self.a.num_images,
            last_timestep=self.a.num_passes - 1, **WAYS.get(way, {}),
        )  # fmt: skip
        calibration = make_calibration(self.denoiser, process_of(self.pipeline), options)
        return seconds(lambda: self.chosen[way].append(self._choose(way, calibration, options)))

    def _choose(self, way: str, calibration: Calibration, options: PlanOptions) -> Kept:
        if way in WAYS:
            return choose_units(self.denoiser, self.groups, calibration, options).kept
        gradients, used = plain(self.denoiser, calibration, options.threshold, self.a.num_passes)
        self.passes_used.append(used)
        weights = weights_of(self.denoiser, self.groups)
        values = sums_by_unit(
            self.groups, self.denoiser, weights, lambda path: (weights[path] * gradients[f"{path}.weight"]).abs()
        )
        return fit(self.denoiser, self.groups, Scores("diff-pruning", values), options).kept

    def agreements(self) -> dict[str, list[float]]:
        """Return agreements with the full pass of the same round; for the plain loop, of each pair of its passes."""
        full = self.chosen["plain loop"]
        by_way = {way: [agreement(*pair) for pair in zip(self.chosen[way], full, strict=True)] for way in WAYS}
        return by_way | {"plain loop": [agreement(*pair) for pair in itertools.combinations(full, 2)]}

    def errors(self) -> dict[str, list[float]]:
        held_out, _ = split(images_for(process_of(self.pipeline), self.a.data))
        judge = Judge(self.pipeline, held_out, lambda images: images.flatten(1)[:, :8], 8)

        def error(kept: Kept) -> float:
            return judge.errors(remove_units(self.denoiser, self.groups, kept))["output_error"]

        return {way: [error(kept) for kept in chosen] for way, chosen in self.chosen.items()}


def agreement(first: Kept, second: Kept) -> float:
    """Return the share of kept units that two choices have in common."""
    return sum(len({*first[name]} & {*second[name]}) for name in first) / sum(map(len, first.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["digits"], help="ddpm-cifar10 takes hours, with 16 images")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--num-images", type=int, default=64)
    parser.add_argument("--num-passes", type=int, default=1000, help="timesteps of the full pass, from 0 on")
    add_device(parser)
    a = arguments(parser, {"rounds": 2, "num_images": 8, "num_passes": 20})
    if a.rounds < 2:
        parser.error("--rounds: a second full pass is needed; give at least 2")
    found: dict[str, list[Seconds]] = {}
    rows, more = [], {}
    for model in a.models:
        scoring = Scoring(pipeline_named(model), a)
        times = alternate({way: partial(scoring.measure, way) for way in scoring.chosen}, a.rounds)
        found |= {f"{model}, {way}": each for way, each in times.items()}
        agreements, errors, middle = scoring.agreements(), scoring.errors(), medians(times)
        target, worst = mean(agreements["plain loop"]), max(errors["plain loop"])
        for way in WAYS:
            name = f"scores, {model}, {way}"
            rows += [
                faster(name, middle[way], middle["plain loop"], TARGET),
                Row(f"{name}: units as the full pass", "", mean(agreements[way]), target),
                Row(f"{name}: output error", "", mean(errors[way]), worst, at_most=True),
            ]
        more[model] = {"agreements": agreements, "errors": errors, "passes_to_threshold": scoring.passes_used}
    record("scores", a, found, rows, **more)


if __name__ == "__main__":
    main()
