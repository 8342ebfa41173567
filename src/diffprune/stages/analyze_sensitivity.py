"""Command `analyze sensitivity`: error of the output when one group or one block alone is pruned."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffprune.calibration.calibration_set import NoisyBatch
from diffprune.calibration.stage_caches import latents_in, remove_caches, sums_in
from diffprune.compute.autocast import resolve_precision
from diffprune.compute.device import pick_device
from diffprune.compute.placement import placed
from diffprune.criteria.block_batches import spaced_batches
from diffprune.groups import Group, remove_units
from diffprune.options import BudgetOptions, SensitivityOptions
from diffprune.pipelines.loading import load_model
from diffprune.pipelines.predict import predict
from diffprune.pipelines.prompts import files_of
from diffprune.planning import Prepared, allocate, check_patterns, prepare, score
from diffprune.reporting.analysis_figures import error_by_ratio
from diffprune.reporting.formats import block_of
from diffprune.runs.accumulator import Accumulator
from diffprune.runs.atomic_files import atomic_write, read_json
from diffprune.runs.progress import progress
from diffprune.runs.run_record import Existing, run_record

ROWS_NAME = "rows.json"


def sensitivity_stage(
    source: str, options: SensitivityOptions, out: Path, *, existing: Existing = "refuse"
) -> dict[str, Any]:
    """Prune one part of MODEL at a time, at each ratio, and measure the error; an interrupted run resumes.

    Writes `sensitivity.png`, and into run.json two errors per part and ratio. `error` is the mean squared change of the
    output over the calibration images and evenly spaced timesteps. `relative_error` is `error` divided by the mean
    square of the output.
    """
    options = resolve_precision(options)
    inputs = {"model": source, "data": options.data, **files_of(options.prompts)}
    with run_record(
        out, "analyze-sensitivity", options.resolved(), inputs, existing=existing, neutral=options.neutral,
        resumable=True,
    ) as run:  # fmt: skip
        if not run.finished_before:
            latents = latents_in(run.folder, run.inputs)
            prepared = prepare(load_model(source).whole, options.kinds, calibrating=options, latents=latents)
            sums = sums_in(run.folder, run.inputs, options)
            rows = _measure(prepared, options, run.folder / ROWS_NAME, sums)
            remove_caches(run.folder)
            atomic_write(run.folder / "sensitivity.png", error_by_ratio(rows))
            run.result = {"parts": rows}
        return run.result


def _measure(
    prepared: Prepared, options: SensitivityOptions, rows_file: Path, sums: Accumulator
) -> list[dict[str, Any]]:
    """Return one row per part and ratio; rows of an interrupted run are read from `rows_file`."""
    denoiser, groups = prepared.denoiser, prepared.groups
    check_patterns(groups, BudgetOptions(kinds=options.kinds))
    calibration = prepared.calibration
    assert calibration is not None, "the options of the analysis include a calibration set"
    scores = score(denoiser, groups, calibration, options, sums)
    batches = list(spaced_batches(calibration, options, options.num_timesteps))
    rows: list[dict[str, Any]] = read_json(rows_file)["rows"] if rows_file.exists() else []
    measured = {(row["part"], row["ratio"]) for row in rows}
    parts = _parts(groups, options)
    missing = [(part, ratio) for part in parts for ratio in options.ratios if (part, ratio) not in measured]
    with placed(denoiser, pick_device(options.device)), progress("sensitivity", len(missing), "prunings") as advance:
        dense = _outputs(denoiser, batches)
        power = float(torch.cat([output.square().flatten() for output in dense]).mean())
        for part, ratio in missing:
            kept = allocate(parts[part], scores, BudgetOptions(ratio=ratio))
            error = _error(_outputs(remove_units(denoiser, groups, kept), batches), dense)
            rows.append({"part": part, "ratio": ratio, "error": error, "relative_error": error / power})
            atomic_write(rows_file, json.dumps({"rows": rows}))
            advance(1, f"{part} {ratio:g}: {error / power:.3g}")
    return rows


def _parts(groups: Sequence[Group], options: SensitivityOptions) -> Mapping[str, list[Group]]:
    """Return the groups to prune together, by the name of a group or of a block."""
    parts: dict[str, list[Group]] = {}
    for group in groups:
        parts.setdefault(group.name if options.by == "group" else block_of(group.name), []).append(group)
    return parts


def _error(outputs: Sequence[Tensor], dense: Sequence[Tensor]) -> float:
    """Return the mean squared difference, averaged in float64."""
    return float(torch.cat([(a - b).square().flatten() for a, b in zip(outputs, dense, strict=True)]).double().mean())


@torch.no_grad()
def _outputs(denoiser: nn.Module, batches: Sequence[NoisyBatch]) -> list[Tensor]:
    """Return the output of the denoiser for each batch, in float32."""
    return [predict(denoiser, batch.noisy, batch.timesteps, batch.condition).float() for batch in batches]
