"""Command `prune`: prune a model by a plan file, or by a plan that it makes."""

import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from diffprune.calibration.latent_cache import LatentCache
from diffprune.calibration.stage_caches import latents_in, remove_caches, sums_in
from diffprune.compute.autocast import resolve_precision
from diffprune.errors import OptionError
from diffprune.options import CalibrationOptions, PlanOptions, PruneOptions
from diffprune.options.budget_options import requested_of
from diffprune.pipelines.model_card import copy_model_card
from diffprune.pipelines.prompts import files_of
from diffprune.pipelines.saving import save_into
from diffprune.pipelines.stored_dtype import in_stored_dtype, load_as_stored
from diffprune.planning import Plan, Prepared, make_plan, prepare, read_plan
from diffprune.planning.widths import resolve_round_to
from diffprune.pruning.apply_plan import apply_plan, calibrating_of, is_compensated
from diffprune.pruning.compensation import Compensation
from diffprune.pruning.on_disk import prune_folder, stored_model
from diffprune.pruning.surgery import check_weights
from diffprune.runs.atomic_files import write_json
from diffprune.runs.distributed import on_main_process, shared_run
from diffprune.runs.run_record import Existing

PLAN = "plan.json"

SOLVED = ".compensation"
"""Subfolder of the cached layers of compensation; removed when the stage has finished."""


def prune_model(
    model: Any, options: PruneOptions, plan: Plan | None = None, plan_options: PlanOptions | None = None
) -> tuple[Any, Compensation | None]:
    """Return a pruned copy of a pipeline or bare denoiser, and the statistics of its compensation.

    plan: None makes a plan from `plan_options`, on the same groups and calibration set.
    Raises as `make_plan` and `apply_plan`.
    """
    options = resolve_precision(options)
    if plan is not None:
        prepared = prepare(model, plan.kinds, calibrating=calibrating_of(plan, options), at_most=True)
        return apply_plan(prepared, plan, options)
    planning = _planning(plan_options or PlanOptions(), options)
    prepared = prepare(model, planning.kinds, calibrating=planning, at_most=not planning.is_calibrated)
    check_weights(prepared.denoiser, reinit=options.reinit)
    return apply_plan(prepared, make_plan(prepared, planning), options)


def prune_stage(
    source: str,
    options: PruneOptions,
    plan_options: PlanOptions,
    plan_file: str | Path | None,
    out: Path,
    *,
    existing: Existing = "refuse",
) -> dict[str, Any]:
    """Prune MODEL into a folder, by a plan file or by the options of `plan`.

    With a plan file, and without compensation, a folder is pruned without loading its model. All ranks share the
    scores of a plan; the main process does the rest.
    """
    options = resolve_precision(options)
    existing_plan = None if plan_file is None else _read_plan_file(plan_file, plan_options)
    planning = _planning(plan_options, options)
    calibrating = planning if existing_plan is None else calibrating_of(existing_plan, options)
    wanted = is_compensated(options, calibrating)
    reads = calibrating if wanted or existing_plan is None else options
    inputs = {
        "model": source,
        "plan": None if plan_file is None else str(plan_file),
        "data": reads.data,
        **files_of(reads.prompts if isinstance(reads, CalibrationOptions) else None),
    }
    recorded = {**(planning.resolved() if existing_plan is None else {}), **options.resolved()}
    device = options.device
    with shared_run(out, "prune", recorded, inputs, device=device, existing=existing, neutral=planning.neutral) as run:
        if not run.finished_before:
            plan = on_main_process(lambda: _saved_plan(run.folder) or existing_plan, device)
            latents, prepared = latents_in(run.folder, run.inputs), None
            if plan is None:
                prepared = prepare(
                    load_as_stored(source).whole, planning.kinds,
                    calibrating=planning, latents=latents, at_most=not planning.is_calibrated,
                )  # fmt: skip
                check_weights(prepared.denoiser, reinit=options.reinit)
                plan = make_plan(prepared, planning, sums_in(run.folder, run.inputs, planning))
                if planning.is_calibrated and wanted:  # an interrupted compensation then resumes without new scores
                    on_main_process(partial(plan.save, run.folder / PLAN), device)
            write = partial(_write, source, prepared, plan, options, run.folder)
            run.result = on_main_process(partial(write, calibrating if wanted else None, latents), device)
        return run.result


def _planning(plan_options: PlanOptions, options: PruneOptions) -> PlanOptions:
    """Return the options of `plan` with `auto` resolved, the precision as in `options`."""
    return resolve_round_to(plan_options.model_copy(update={"mixed_precision": options.mixed_precision}))


def _read_plan_file(plan_file: str | Path, plan_options: PlanOptions) -> Plan:
    """Read a plan file; raise OptionError if options of planning are set as well."""
    planning = sorted(plan_options.model_fields_set - {*PruneOptions.model_fields})
    if planning:
        raise OptionError(
            f"a plan file already holds the options of `plan`; leave out {', '.join(planning)}, or leave out the plan"
        )
    return read_plan(plan_file)


def _saved_plan(folder: Path) -> Plan | None:
    """Return the plan that an interrupted run has saved."""
    return read_plan(folder / PLAN) if (folder / PLAN).exists() else None


def _write(
    source: str,
    prepared: Prepared | None,
    plan: Plan,
    options: PruneOptions,
    folder: Path,
    calibrating: CalibrationOptions | None,
    latents: LatentCache,
) -> dict[str, Any]:
    """Write the pruned model into the folder; return the result for `run.json`.

    prepared: None if the model is not loaded yet; a folder that can be pruned tensor by tensor is never loaded.
    calibrating: None if weights are not compensated.
    """
    is_only_sliced = calibrating is None and not options.reinit and not options.rescale_queries
    stored = stored_model(source) if prepared is None and is_only_sliced else None
    result = plan.summary()
    if stored is not None:
        prune_folder(stored, plan, folder)
    else:
        if prepared is None:
            model = load_as_stored(source).whole
            prepared = prepare(model, plan.kinds, calibrating=calibrating, latents=latents, at_most=True)
        small, compensation = apply_plan(prepared, plan, options, folder / SOLVED)
        save_into(in_stored_dtype(small, source), folder)
        if compensation is not None:
            write_json(folder / "compensation.json", asdict(compensation))
            result["compensation"] = compensation.summary()
    plan.save(folder / PLAN)
    copy_model_card(source, folder, _paragraph(source, plan, options))
    remove_caches(folder)
    shutil.rmtree(folder / SOLVED, ignore_errors=True)
    return result


def _paragraph(source: str, plan: Plan, options: PruneOptions) -> str:
    """Return the paragraph of the model card."""
    before, after = plan.before, plan.after
    weights = " Its weights were then reinitialized." if options.reinit else ""
    return (
        f"## Pruned with diffprune\n\nThe {plan.class_name} of `{source}` was pruned structurally "
        f"({plan.choice}; requested: {requested_of(plan.options)}): from {before.params / 1e6:.2f}M parameters "
        f"and {before.macs / 1e9:.3f} GMACs to {after.params / 1e6:.2f}M and {after.macs / 1e9:.3f} GMACs.{weights} "
        "Load it with `import diffprune` before `DiffusionPipeline.from_pretrained`. "
        "The `run.json` of stage `prune` holds the options, versions and results. "
        "The license of the original applies to it."
    )
