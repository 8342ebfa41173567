"""Stage `prune`: carry out a plan."""

import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import nn

from diffprune.artifact.pruned_classes import PrunedMixin
from diffprune.calibration.calibration_set import Calibration
from diffprune.calibration.latent_cache import LatentCache
from diffprune.compute.autocast import resolve_precision
from diffprune.errors import OptionError
from diffprune.groups import find_groups
from diffprune.options import UNCALIBRATED_CRITERIA, CalibrationOptions, PlanOptions, PruneOptions, RunOptions
from diffprune.pipelines.denoiser_access import denoiser_of, with_denoiser
from diffprune.pipelines.model_card import copy_model_card
from diffprune.pipelines.prompts import files_of
from diffprune.pipelines.stored_dtype import in_stored_dtype, load_as_stored
from diffprune.planning import Plan, read_plan
from diffprune.pruning.compensation import Compensation, compensate
from diffprune.pruning.on_disk import prune_folder, stored_model
from diffprune.pruning.surgery import check_weights, prune_denoiser
from diffprune.runs.atomic_files import atomic_folder, write_json
from diffprune.runs.distributed import on_main_process, shared_run
from diffprune.runs.run_record import Existing
from diffprune.stages.plan_stage import (
    calibration_of,
    plan_and_calibration,
    remove_caches,
    resolve_auto_options,
    stage_caches,
)

SOLVED = ".compensation"
"""Folder of the layers that compensation has solved, while it lasts."""


def apply_plan(
    model: Any,
    plan: Plan,
    options: PruneOptions,
    calibration: Calibration | None = None,
    *,
    store: LatentCache | None = None,
    folder: Path | None = None,
) -> tuple[Any, Compensation | None]:
    """`prune` with its options as one value, and what compensation did.

    calibration: what the plan was scored on, where it is at hand; taken unless `data` names other images. store: of
    latents. folder: of solved layers.
    """
    dense = denoiser_of(model)
    cut = partial(
        prune_denoiser, dense, plan, reinit=options.reinit, rescale_queries=options.rescale_queries, seed=options.seed
    )
    by = _calibrating(plan, options, bare=isinstance(model, nn.Module))
    if by is not None and (calibration is None or by.data != plan.options.get("data")):
        calibration = calibration_of(model, dense, by, store, fewer_will_do=True)
    small, done = cut(), None
    if by is not None and calibration is not None:
        done = compensate(
            dense, small, plan, calibration, options,
            groups=find_groups(dense, kinds=plan.kinds),
            batch_size=by.batch_size, offloaded=by.offload == "cpu", folder=folder,
        )  # fmt: skip
        small = small if done.helped else cut()
        if isinstance(small, PrunedMixin):
            small.pruning_provenance[-1]["compensation"] = done.summary()
    return (small if isinstance(model, nn.Module) else with_denoiser(model, small)), done


def _calibrating(plan: Plan, options: PruneOptions, *, bare: bool = False) -> CalibrationOptions | None:
    """The options of the images for compensation; None where it is not wanted, or not possible and not asked for."""
    asked = "compensate" in options.model_fields_set and options.compensate
    chosen = {name: value for name, value in plan.options.items() if name in CalibrationOptions.model_fields}
    run = options.model_dump(include={*RunOptions.model_fields})
    data = {} if options.data is None else {"data": options.data}
    by = CalibrationOptions.model_validate({**chosen, **run, **data})
    lacking = None
    if options.reinit:
        lacking = "fresh weights have nothing to keep"
    elif bare:
        lacking = "a bare denoiser has no noise schedule; give a pipeline"
    elif by.data is None:
        lacking = "it needs images: give data (a folder, a parquet file, a dataset id, `digits` or `generated`)"
    if lacking is not None and asked:
        raise OptionError(f"compensate: {lacking}")
    return by if options.compensate and lacking is None else None


def publish(model: DiffusionPipeline | ModelMixin, folder: Path) -> None:
    """Save a model and move it into the stage's folder, its index last."""
    with atomic_folder(folder / ".pipeline") as beside:
        model.save_pretrained(beside)
    saved = folder / ".pipeline"
    for part in sorted(saved.iterdir(), key=lambda p: p.name == "model_index.json"):
        target = folder / part.name
        if target.is_dir():
            shutil.rmtree(target)
        part.replace(target)
    saved.rmdir()


def prune_stage(
    source: str,
    options: PruneOptions,
    plan_options: PlanOptions,
    plan_file: str | Path | None,
    out: Path,
    *,
    existing: Existing = "refuse",
) -> dict[str, Any]:
    """Prune MODEL into a pipeline folder, by a plan file or by the options of `plan`.

    With a plan file, and where the weights only have to be cut, a folder is pruned without loading it. Several
    processes share the scores of a plan; the first does the rest.
    """
    shared = set(PruneOptions.model_fields)
    if plan_file is not None and plan_options.model_fields_set - shared:
        given = ", ".join(sorted(plan_options.model_fields_set - shared))
        raise OptionError(f"a plan file already holds the options of plan; drop {given} or drop the plan")
    options, plan_options = resolve_precision(options), resolve_auto_options(plan_options)
    by = {} if plan_file is not None else plan_options.resolved()
    calibrating = plan_options if plan_file is None else _calibrating(read_plan(plan_file), options) or plan_options
    inputs = {
        "model": source,
        "plan": str(plan_file) if plan_file is not None else None,
        "data": options.data or calibrating.data,
        **files_of(calibrating.prompts),
    }
    device = options.device
    recorded = {**by, **options.resolved()}
    with shared_run(
        out, "prune", recorded, inputs, device=device, existing=existing, neutral=plan_options.neutral
    ) as run:
        if not run.finished_before:
            kept, model, calibration = run.folder / "plan.json", None, None
            plan = on_main_process(lambda: _plan_there(kept, plan_file), device)
            store, sums = stage_caches(run.folder, inputs, plan_options)
            if plan is None:
                model = load_as_stored(source).whole
                check_weights(denoiser_of(model), reinit=options.reinit)
                plan, calibration = plan_and_calibration(model, plan_options, store, sums)
                if plan.criterion not in UNCALIBRATED_CRITERIA and _calibrating(plan, options) is not None:
                    on_main_process(partial(plan.save, kept), device)  # it took long, and what follows does
            finish = partial(_into_folder, source, model, plan, options, run.folder, store, calibration)
            run.result = on_main_process(finish, device)
        return run.result


def _plan_there(kept: Path, plan_file: str | Path | None) -> Plan | None:
    """The plan that an interrupted run has left, or the one that was given."""
    there = kept if kept.exists() else plan_file
    return None if there is None else read_plan(there)


def _into_folder(
    source: str,
    model: Any,
    plan: Plan,
    options: PruneOptions,
    folder: Path,
    store: LatentCache,
    calibration: Calibration | None,
) -> dict[str, Any]:
    """Carry out a plan; returns what goes into `run.json`. model, calibration: where they are there already."""
    stored = stored_model(source) if model is None and _only_cuts(plan, options) else None
    compensation = None
    if stored is not None:
        prune_folder(stored, plan, folder)
    else:
        model = model or load_as_stored(source).whole
        small, compensation = apply_plan(model, plan, options, calibration, store=store, folder=folder / SOLVED)
        publish(in_stored_dtype(small, source), folder)
    plan.save(folder / "plan.json")
    copy_model_card(source, folder, _paragraph(source, plan, options))
    result = plan.summary()
    if compensation is not None:
        write_json(folder / "compensation.json", asdict(compensation))
        result["compensation"] = compensation.summary()
    remove_caches(folder)
    shutil.rmtree(folder / SOLVED, ignore_errors=True)
    return result


def _only_cuts(plan: Plan, options: PruneOptions) -> bool:
    """Whether the weights that stay are those of the original."""
    return not options.reinit and not options.rescale_queries and _calibrating(plan, options) is None


def _paragraph(source: str, plan: Plan, options: PruneOptions) -> str:
    before, after = plan.before, plan.after
    weights = " Its weights were then drawn afresh." if options.reinit else ""
    return (
        f"## Pruned with diffprune\n\nThe {plan.class_name} of `{source}` was pruned structurally "
        f"(criterion {plan.criterion}, ratio {plan.options.get('ratio')}): from {before.params / 1e6:.2f}M parameters "
        f"and {before.macs / 1e9:.3f} GMACs to {after.params / 1e6:.2f}M and {after.macs / 1e9:.3f} GMACs.{weights} "
        "Load it with `import diffprune` before `DiffusionPipeline.from_pretrained`. "
        "The licence of the original holds for it."
    )
