"""Recovery of pruned models by finetuning: the published way, each ingredient added, random units, from scratch.

    python benchmarks/quality.py digits --data digits --steps 1000 --seeds 3 --out benchmarks/results/quality-digits
    python benchmarks/quality.py PIPELINE --data train.parquet --out benchmarks/results/quality-NAME

Every arm prunes one pretrained model by the same ratio and trains it with the same options. Seeds change the
calibration images, the noises, the data order and random scores. Measured on EMA weights:

- output error: mean squared difference to the original's output on held-out images, noises and timesteps
- noise error: mean squared error of the predicted noise on the same images, minus that of the original
- Fréchet distance of samples to held-out images, on features of a small classifier, minus that of the original's
  samples
- SSIM to the original's samples from the same noise

Writes OUT/quality.json after every run and resumes from it; OUT/quality.png and OUT/quality.md at the end.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib

from diffprune.calibration.calibration_set import images_for
from diffprune.data.images import ImageSet
from diffprune.options import FinetuneOptions, PlanOptions, PruneOptions
from diffprune.pipelines.denoiser_access import denoiser_of
from diffprune.pipelines.diffusion import process_of
from diffprune.pipelines.loading import load_pipeline
from diffprune.stages.plan_stage import plan_model
from diffprune.stages.prune_stage import prune_model
from diffprune.training.step_callback import StepFacts
from diffprune.training.trainer import train_denoiser
from judge import Judge, classifier_for, split
from rounds import add_device, facts

ARMS: dict[str, dict[str, Any]] = {
    "published": {},
    "compensated": {"compensate": True},
    "teacher": {"teacher": True},
    "compensated + teacher": {"compensate": True, "teacher": True},
    "soap": {"optimizer": "soap"},
    "compensated + teacher + soap": {"compensate": True, "teacher": True, "optimizer": "soap"},
    "compensated + teacher + features": {"compensate": True, "teacher": True, "feature_weight": 0.1},
    "obs + compensated + teacher": {"criterion": "obs", "compensate": True, "teacher": True},
    "random": {"criterion": "random"},
    "scratch": {"reinit": True},
    "scratch + soap": {"reinit": True, "optimizer": "soap"},
}
"""Changes of each arm to the published way: diff-pruning scores, sliced weights, denoising loss alone, AdamW.

By default `prune` compensates, and `finetune` uses SOAP and the teacher, where there is one.
"""


def run(arm: str, seed: int, pipeline: Any, images: ImageSet, judge: Judge, a: argparse.Namespace) -> dict[str, Any]:
    """Run one arm, from pruning to its last step; returns figures by step, and seconds of each part."""
    changes = ARMS[arm]
    started = time.perf_counter()
    criterion = changes.get("criterion", "diff-pruning")
    scoring = {
        "data": a.data,
        "device": a.device,
        "mixed_precision": a.mixed_precision,
        "timestep_stride": a.stride,
        "num_calibration_images": 64,
    }
    calibration = {} if criterion == "random" else scoring
    plan = plan_model(pipeline, PlanOptions(criterion=criterion, ratio=a.ratio, seed=seed, **calibration))
    scored = time.perf_counter()
    chosen = {name: changes.get(name, False) for name in ("compensate", "reinit")}
    options = PruneOptions(data=a.data, seed=seed, **chosen)
    small, _ = prune_model(pipeline, options, plan)
    pruned = time.perf_counter()
    at_start = {**judge.errors(denoiser_of(small)), **judge.samples(denoiser_of(small)), "seconds": 0.0}
    figures: dict[int, dict[str, float]] = {0: at_start}
    judging = 0.0
    rate = {} if "optimizer" in changes else {"optimizer": "adamw", "learning_rate": a.learning_rate}
    chosen = {name: changes[name] for name in ("optimizer", "feature_weight") if name in changes}
    training = FinetuneOptions(
        data=a.data, steps=a.steps, batch_size=a.batch_size, device=a.device, ema_decay=0.98,
        flip=not a.no_flip, seed=seed, tracker="none",
        teacher_weight=0.7, mixed_precision=a.mixed_precision, **rate, **chosen,
    )  # fmt: skip
    begun = time.perf_counter()

    def measure(step: int, facts: StepFacts) -> None:
        nonlocal judging
        if step % a.every:
            return
        since = time.perf_counter()
        denoiser = facts.ema_denoiser()
        figures[step] = {**judge.errors(denoiser), "seconds": since - begun - judging}
        if step in a.milestones:
            figures[step] |= judge.samples(denoiser)
        judging += time.perf_counter() - since

    teacher = denoiser_of(pipeline) if changes.get("teacher") else None
    train_denoiser(denoiser_of(small), process_of(pipeline), images, training, teacher=teacher, on_step=measure)
    return {
        "arm": arm, "seed": seed, "params": plan.after.params / plan.before.params,
        "macs": plan.after.macs / plan.before.macs, "seconds_scoring": scored - started,
        "seconds_pruning": pruned - scored, "figures": figures,
    }  # fmt: skip


def steps_to(runs: list[dict[str, Any]], goal: float) -> int | None:
    """Return the first step at which the mean noise error over seeds is at most a goal."""
    steps = sorted(map(int, runs[0]["figures"]))
    return next((s for s in steps if mean(_figure(r, s, "noise_error") for r in runs) <= goal), None)


def _figure(run: dict[str, Any], step: int, name: str) -> float:
    return float(run["figures"][str(step)][name])


def table(runs: list[dict[str, Any]], milestones: list[int], last: int) -> str:
    """Return a Markdown table: mean and standard deviation over seeds, by arm and step."""
    by_arm = {arm: [r for r in runs if r["arm"] == arm] for arm in ARMS if any(r["arm"] == arm for r in runs)}
    goal = mean(_figure(r, last, "noise_error") for r in by_arm["published"])
    names = {
        "output_error": "output error",
        "noise_error": "noise error above the original's",
        "frechet": "Fréchet distance above the original's",
        "ssim": "SSIM to the original's samples",
    }
    lines = []
    for name, words in names.items():
        lines += ["", f"**{words}**", "", "| arm | seeds | " + " | ".join(f"{m} steps" for m in milestones) + " |"]
        lines.append("|---|---|" + "---|" * len(milestones))
        for arm, own in by_arm.items():
            cells = []
            for step in milestones:
                values = [_figure(r, step, name) for r in own]
                spread = f" ± {stdev(values):.2g}" if len(values) > 1 else ""
                cells.append(f"{mean(values):.3g}{spread}")
            lines.append(f"| {arm} | {len(own)} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"| arm | steps to the published way's noise error after {last} | seconds for {last} |",
        "|---|---|---|",
    ]
    for arm, own in by_arm.items():
        first = steps_to(own, goal) or "not reached"
        lines.append(f"| {arm} | {first} | {mean(_figure(r, last, 'seconds') for r in own):.0f} |")
    return "\n".join(lines[1:]) + "\n"


def plot(runs: list[dict[str, Any]], path: Path) -> None:
    """Plot noise error and output error by step and by seconds, one line per run."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(15, 4.5))
    arms = [arm for arm in ARMS if any(r["arm"] == arm for r in runs)]
    for run_ in runs:
        steps = sorted(map(int, run_["figures"]))
        color = f"C{arms.index(run_['arm'])}"
        label = run_["arm"] if run_["seed"] == 0 else None
        for axis, name in zip(axes, ("output_error", "noise_error", "noise_error"), strict=True):
            by_time = axis is axes[2]
            x = [_figure(run_, s, "seconds") for s in steps] if by_time else steps
            axis.plot(x, [_figure(run_, s, name) for s in steps], color=color, label=label, alpha=0.8)
            axis.set(yscale="log", ylabel=name.replace("_", " "), xlabel="seconds of training" if by_time else "steps")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--every", type=int, default=50, help="steps between two measurements of errors")
    parser.add_argument("--milestones", type=int, nargs="+", default=[0, 100, 300, 1000], help="steps with samples")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument(
        "--learning-rate", type=float, default=5e-4, help="learning rate of AdamW; SOAP uses its default"
    )
    parser.add_argument("--stride", type=int, default=10, help="stride of the scored timesteps")
    parser.add_argument(
        "--mixed-precision", default="no", choices=["no", "bf16"], help="autocast dtype of scores and training"
    )
    add_device(parser)
    parser.add_argument("--num-drawn", type=int, default=256)
    parser.add_argument("--no-flip", action="store_true")
    a = parser.parse_args()
    a.milestones = [step for step in a.milestones if step <= a.steps]
    pipeline: Any = load_pipeline(a.model)
    everything = images_for(process_of(pipeline), a.data)
    held_out, images = split(everything)
    judge = Judge(pipeline, held_out, classifier_for(a.data, everything).embed, a.num_drawn, a.device)
    path = a.out / "quality.json"
    a.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"runs": []}
    results |= {
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in vars(a).items() if k != "out"},
        "original": judge.of_original, **facts(),
    }  # fmt: skip
    for seed in range(a.seeds):
        for arm in a.arms:
            if any(r["arm"] == arm and r["seed"] == seed for r in results["runs"]):
                continue
            results["runs"].append(json.loads(json.dumps(run(arm, seed, pipeline, images, judge, a))))
            path.write_text(json.dumps(results, indent=1) + "\n")
            last = results["runs"][-1]["figures"][str(a.steps)]
            print(
                f"{arm}, seed {seed}: {results['runs'][-1]['figures']['0']['output_error']:.4f} -> {last}", flush=True
            )
    (a.out / "quality.md").write_text(table(results["runs"], a.milestones, a.steps))
    plot(results["runs"], a.out / "quality.png")
    print((a.out / "quality.md").read_text())


if __name__ == "__main__":
    main()
