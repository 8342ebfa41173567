"""Stage `analyze sensitivity`: how much the output suffers when one group or one block alone is pruned."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from diffprune.calibration.calibration_set import NoisyBatch
from diffprune.calibration.latent_cache import LatentCache
from diffprune.compute.autocast import resolve_precision
from diffprune.compute.device import pick_device
from diffprune.compute.placement import placed
from diffprune.criteria import Scores
from diffprune.criteria.block_batches import spaced_batches
from diffprune.groups import Group, find_groups, remove_units
from diffprune.options import BudgetOptions, SensitivityOptions
from diffprune.pipelines.denoiser_access import denoiser_of
from diffprune.pipelines.loading import load_model
from diffprune.pipelines.predict import predict
from diffprune.pipelines.prompts import files_of
from diffprune.planning import allocate, check_patterns, score
from diffprune.reporting.analysis_figures import error_by_ratio
from diffprune.reporting.formats import block_of
from diffprune.runs.accumulator import Accumulator
from diffprune.runs.atomic_files import atomic_write, read_json
from diffprune.runs.progress import progress
from diffprune.runs.run_record import Existing, run_record
from diffprune.stages.plan_stage import calibration_of, remove_caches, stage_caches

ROWS_NAME = "rows.json"


def sensitivity_stage(
    source: str, options: SensitivityOptions, out: Path, *, existing: Existing = "refuse"
) -> dict[str, Any]:
    """Prune one part of MODEL at a time, at each ratio, and measure the output; resumable.

    Leaves `sensitivity.png`, and in run.json per part and ratio: the mean squared change of the prediction over the
    calibration images and evenly spaced timesteps, and the same relative to the mean square of the prediction.
    """
    options = resolve_precision(options)
    inputs = {"model": source, "data": options.data, **files_of(options.prompts)}
    with run_record(
        out, "analyze-sensitivity", options.resolved(), inputs, existing=existing, neutral=options.neutral,
        resumable=True,
    ) as run:  # fmt: skip
        if not run.finished_before:
            store, sums = stage_caches(run.folder, inputs, options)
            rows = _measure(load_model(source).whole, options, run.folder / ROWS_NAME, store, sums)
            remove_caches(run.folder)
            atomic_write(run.folder / "sensitivity.png", error_by_ratio(rows))
            run.result = {"parts": rows}
        return run.result


def _measure(
    model: Any, options: SensitivityOptions, notes: Path, store: LatentCache, sums: Accumulator
) -> list[dict[str, Any]]:
    """One row per part and ratio; what an interrupted run noted is not measured again."""
    denoiser = denoiser_of(model)
    groups = find_groups(denoiser, kinds=options.kinds)
    check_patterns(groups, BudgetOptions(kinds=options.kinds))
    calibration = calibration_of(model, denoiser, options, store)
    device = pick_device(options.device)
    scores = score(denoiser, groups, calibration, options, sums)
    batches = list(spaced_batches(calibration, options, options.num_timesteps))
    rows: list[dict[str, Any]] = read_json(notes)["rows"] if notes.exists() else []
    done = {(row["part"], row["ratio"]) for row in rows}
    left = [(part, mine, ratio) for part, mine in _parts(groups, options).items() for ratio in options.ratios]
    left = [item for item in left if (item[0], item[2]) not in done]
    with placed(denoiser, device), progress("sensitivity", len(left), "prunings") as advance:
        whole = _outputs(denoiser, batches)
        power = float(torch.cat([output.square().flatten() for output in whole]).mean())
        for part, mine, ratio in left:
            error = _error(denoiser, groups, mine, scores, ratio, batches, whole)
            rows.append({"part": part, "ratio": ratio, "error": error, "relative_error": error / power})
            atomic_write(notes, json.dumps({"rows": rows}))
            advance(1, f"{part} {ratio:g}: {error / power:.3g}")
    return rows


def _parts(groups: Sequence[Group], options: SensitivityOptions) -> Mapping[str, list[Group]]:
    parts: dict[str, list[Group]] = {}
    for group in groups:
        parts.setdefault(group.name if options.by == "group" else block_of(group.name), []).append(group)
    return parts


def _error(
    denoiser: ModelMixin, groups: Sequence[Group], mine: Sequence[Group], scores: Scores, ratio: float,
    batches: Sequence[NoisyBatch], whole: Sequence[Tensor],
) -> float:  # fmt: skip
    kept = allocate(mine, scores, BudgetOptions(ratio=ratio))
    outputs = _outputs(remove_units(denoiser, groups, kept), batches)
    return float(torch.cat([(a - b).square().flatten() for a, b in zip(outputs, whole, strict=True)]).double().mean())


@torch.no_grad()
def _outputs(denoiser: nn.Module, batches: Sequence[NoisyBatch]) -> list[Tensor]:
    return [predict(denoiser, batch.noisy, batch.timesteps, batch.condition).float() for batch in batches]
