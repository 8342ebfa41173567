"""The scores of diff-pruning: 1,000 fp32 backward passes in a plain loop against ours, in time and in what they choose.

    python benchmarks/scores.py --out benchmarks/results/scores

A round has calibration images and noises of its own. The plain loop is what people write: one batch, every timestep,
gradients summed by autograd. It chooses units the published way, by its gradients before the first timestep whose loss
is below a share of the largest, and goes on to the last; the record tells how many passes came before. Ours is the
criterion as it is by default, with all timesteps, and both in fp32, on the same images. Of the units that stay:

- agreement: the share that the full pass keeps too; the bar is a second full pass, which is that of the next round
- output error right after pruning, not compensated, on held-out images; the bar is the worst of the full passes

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
from diffprune.criteria.score_pass import weights_of
from diffprune.criteria.scores import Scores, sums_by_unit
from diffprune.groups import Group, find_groups, remove_units
from diffprune.options import PlanOptions
from diffprune.pipelines.diffusion import process_of
from diffprune.planning.budget import Kept, fit
from diffprune.planning.rounds import choose_units
from diffprune.stages.plan_stage import calibration_of
from judge import Judge, split
from rounds import Row, Seconds, add_device, alternate, arguments, faster, medians, pipeline_named, record, seconds

ASKED = 8.0


def plain(denoiser: Any, calibration: Calibration, threshold: float, num_passes: int) -> tuple[dict[str, Tensor], int]:
    """What people write: summed gradients by parameter before the threshold, and how many passes that were."""
    clean, noise = calibration.clean, calibration.noise
    denoiser.to(clean.device).requires_grad_(True).zero_grad()
    largest, found, used = 0.0, None, num_passes
    for t in range(num_passes):
        timesteps = torch.full((len(clean),), t, device=clean.device)
        noisy = calibration.scheduler.add_noise(clean, noise, timesteps)
        loss = mse_loss(denoiser(noisy, timesteps).sample, noise)
        largest = max(largest, loss.item())
        if found is None and loss.item() < threshold * largest:
            found, used = _gradients(denoiser), t
        loss.backward()
    found = _gradients(denoiser) if found is None else found
    denoiser.zero_grad()
    denoiser.to("cpu")
    return found, used


def _gradients(denoiser: Any) -> dict[str, Tensor]:
    return {name: p.grad.to("cpu", copy=True) for name, p in denoiser.named_parameters() if p.grad is not None}


WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "default in fp32": {"mixed_precision": "no"},
    "all timesteps": {"timestep_stride": 1},
    "all timesteps in fp32": {"timestep_stride": 1, "mixed_precision": "no"},
}


class Scoring:
    """The ways of one model, and what they chose in each round."""

    def __init__(self, pipeline: Any, a: argparse.Namespace) -> None:
        self.pipeline, self.denoiser, self.a = pipeline, pipeline.unet.eval(), a
        self.groups: list[Group] = list(find_groups(self.denoiser))
        self.chosen: dict[str, list[Kept]] = {name: [] for name in ("plain loop", *WAYS)}
        self.passes_used: list[int] = []

    def measure(self, way: str) -> Seconds:
        """Choose units in one way, on the images of its next round."""
        options = PlanOptions(
            criterion="diff-pruning", ratio=self.a.ratio, data=self.a.data, seed=len(self.chosen[way]),
            device=self.a.device, num_calibration_images=self.a.num_images, batch_size=self.a.num_images,
            last_timestep=self.a.num_passes - 1, **WAYS.get(way, {}),
        )  # fmt: skip
        calibration = calibration_of(self.pipeline, self.denoiser, options)
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
        """With the full pass of the same round; of the plain loop, of each pair of its passes."""
        full = self.chosen["plain loop"]
        found = {way: [agreement(*pair) for pair in zip(self.chosen[way], full, strict=True)] for way in WAYS}
        return found | {"plain loop": [agreement(*pair) for pair in itertools.combinations(full, 2)]}

    def errors(self) -> dict[str, list[float]]:
        held_out, _ = split(images_for(process_of(self.pipeline), self.a.data))
        judge = Judge(self.pipeline, held_out, lambda images: images.flatten(1)[:, :8], 8)

        def error(kept: Kept) -> float:
            return judge.errors(remove_units(self.denoiser, self.groups, kept))["output_error"]

        return {way: [error(kept) for kept in chosen] for way, chosen in self.chosen.items()}


def agreement(first: Kept, second: Kept) -> float:
    """The share of the kept units that two choices have in common."""
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
        bar, worst = mean(agreements["plain loop"]), max(errors["plain loop"])
        for way in WAYS:
            name = f"scores, {model}, {way}"
            rows += [
                faster(name, middle[way], middle["plain loop"], ASKED),
                Row(f"{name}: units as the full pass", "", mean(agreements[way]), bar),
                Row(f"{name}: output error", "", mean(errors[way]), worst, at_most=True),
            ]
        more[model] = {"agreements": agreements, "errors": errors, "passes_to_threshold": scoring.passes_used}
    record("scores", a, found, rows, **more)


if __name__ == "__main__":
    main()
