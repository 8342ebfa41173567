"""Command `evaluate`: compute metrics of images, most of them against a reference."""

from pathlib import Path
from typing import Any

from diffprune.evaluation.measure_images import measure
from diffprune.options import EvaluateOptions
from diffprune.runs.distributed import shared_run
from diffprune.runs.run_record import Existing


def evaluate_stage(
    images: str, reference: str | None, options: EvaluateOptions, out: Path | None, *, existing: Existing = "refuse"
) -> dict[str, Any]:
    """Return the metrics of IMAGES against REFERENCE; with `out`, also write them into run.json of that folder."""
    if out is None:
        return measure(images, reference, options)
    files = {name: getattr(options, name) for name in ("inception_weights", "lpips_weights", "prompts")}
    inputs = {"images": images, "reference": reference, **{k: str(v) for k, v in files.items() if v is not None}}
    with shared_run(
        out, "evaluate", options.resolved(), inputs, device=options.device, existing=existing,
        neutral=options.neutral, resumable=False,
    ) as run:  # fmt: skip
        if not run.finished_before:
            run.result = measure(images, reference, options)
        return run.result
