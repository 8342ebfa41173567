"""Compare criteria: output error right after pruning, sliced and compensated, and seconds of scoring.

    python benchmarks/criteria.py digits --data digits --out benchmarks/results/criteria-digits

The error is the mean squared difference to the original's output on 640 held-out noised images; seeds change the
calibration images, their noises, and random scores.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any, get_args

from diffprune.calibration.calibration_set import images_for
from diffprune.options import Criterion, PlanOptions, PruneOptions
from diffprune.pipelines.diffusion import process_of
from diffprune.pipelines.loading import load_pipeline
from diffprune.stages.plan_stage import plan_model
from diffprune.stages.prune_stage import prune_model
from judge import Judge, split
from rounds import facts


def measure(
    pipeline: Any, judge: Judge, criterion: str, ratio: float, seed: int, a: argparse.Namespace
) -> dict[str, Any]:
    scoring = {"mixed_precision": "no", "timestep_stride": a.stride, "num_calibration_images": a.num_images}
    calibration = {} if criterion in ("random", "magnitude") else {**scoring, "data": a.data}
    started = time.perf_counter()
    plan = plan_model(pipeline, PlanOptions(criterion=criterion, ratio=ratio, seed=seed, **calibration))
    seconds = time.perf_counter() - started
    errors = {}
    for compensate in (False, True):
        small, _ = prune_model(pipeline, PruneOptions(data=a.data, seed=seed, compensate=compensate), plan)
        errors["compensated" if compensate else "sliced"] = judge.errors(small.unet)["output_error"]
    return {"criterion": criterion, "ratio": ratio, "seed": seed, "seconds": seconds, **errors}


def table(rows: list[dict[str, Any]], ratios: list[float]) -> str:
    def cell(values: list[float]) -> str:
        return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")

    heads = [f"{kind} at {ratio}" for ratio in ratios for kind in ("sliced", "compensated")]
    lines = ["| criterion | " + " | ".join(heads) + " | seconds of scoring |", "|---|" + "---|" * (len(heads) + 1)]
    for criterion in dict.fromkeys(row["criterion"] for row in rows):
        own = [row for row in rows if row["criterion"] == criterion]
        cells = [
            cell([row[kind] for row in own if row["ratio"] == ratio])
            for ratio in ratios
            for kind in ("sliced", "compensated")
        ]
        lines.append(f"| {criterion} | " + " | ".join(cells) + f" | {mean(row['seconds'] for row in own):.1f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.3, 0.5])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--stride", type=int, default=20, help="every n-th timestep is scored")
    parser.add_argument("--num-images", type=int, default=64)
    parser.add_argument("--criteria", nargs="+", default=list(get_args(Criterion)))
    a = parser.parse_args()
    pipeline: Any = load_pipeline(a.model)
    held_out, _ = split(images_for(process_of(pipeline), a.data))
    judge = Judge(pipeline, held_out, lambda images: images.flatten(1)[:, :8], 8)
    a.out.mkdir(parents=True, exist_ok=True)
    path = a.out / "criteria.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": []}
    results |= facts()
    measured = {(row["criterion"], row["ratio"], row["seed"]) for row in results["rows"]}
    for seed in range(a.seeds):
        for criterion in a.criteria:
            for ratio in a.ratios:
                if (criterion, ratio, seed) not in measured:
                    results["rows"].append(measure(pipeline, judge, criterion, ratio, seed, a))
                    path.write_text(json.dumps(results, indent=1) + "\n")
                    print(results["rows"][-1], flush=True)
    (a.out / "criteria.md").write_text(table(results["rows"], a.ratios))
    print((a.out / "criteria.md").read_text())


if __name__ == "__main__":
    main()
