"""Command `plan`: score the units of a model and choose the units to keep."""

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from diffprune.calibration.stage_caches import latents_in, remove_caches, sums_in
from diffprune.errors import FolderError
from diffprune.options import PlanOptions
from diffprune.pipelines.denoiser_access import denoiser_of
from diffprune.pipelines.prompts import files_of
from diffprune.pipelines.stored_dtype import load_as_stored
from diffprune.planning import Plan, fingerprint, make_plan, prepare, read_plan, resolve_auto
from diffprune.planning.prepared import Model
from diffprune.runs.atomic_files import check_replaceable, remove_partials_of
from diffprune.runs.distributed import on_main_process, shared_run
from diffprune.runs.progress import notify
from diffprune.runs.run_record import Existing, Inputs, differences, identified
from diffprune.runs.tensor_cache import partial_folder


def plan_model(model: Model, options: PlanOptions) -> Plan:
    """Make a plan in memory; raises as `make_plan`."""
    options = resolve_auto(options)
    return make_plan(prepare(model, options.kinds, calibrating=options), options)


def plan_stage(source: str, options: PlanOptions, out: Path | None, *, existing: Existing = "refuse") -> dict[str, Any]:
    """Make a plan for MODEL and return its figures.

    out: a .json file for the plan, or a folder for plan.json and run.json; None writes nothing.
    """
    if out is None:
        return plan_model(_loaded(source), options).summary()
    options = resolve_auto(options)
    inputs = {"model": source, "data": options.data, **files_of(options.prompts)}
    if out.suffix == ".json":
        return _plan_to_file(_loaded(source), options, out, identified(inputs), existing)
    device = options.device
    with shared_run(
        out, "plan", options.resolved(), inputs, device=device, existing=existing, neutral=options.neutral
    ) as run:
        if not run.finished_before:
            plan = _make_plan_in(run.folder, _loaded(source), options, run.inputs)
            on_main_process(partial(plan.save, run.folder / "plan.json"), device)
            on_main_process(partial(remove_caches, run.folder), device)
            run.result = plan.summary()
        return run.result


def _plan_to_file(model: Model, options: PlanOptions, out: Path, inputs: Inputs, existing: Existing) -> dict[str, Any]:
    """Write a plan to a .json file without a run.json.

    A plan of the same options and inputs is kept. Raises FolderError for any other plan, except with `existing`.
    """
    made_from = {"inputs": inputs, "mixed_precision": options.mixed_precision}
    plan = on_main_process(partial(_existing_plan, out, existing), options.device)
    if plan is None:
        on_main_process(partial(remove_partials_of, out), options.device)
        plan = _make_plan_in(partial_folder(out), model, options, inputs)
        plan = plan.model_copy(update={"details": {**plan.details, "made_from": made_from}})
        on_main_process(partial(plan.save, out), options.device)
        notify(f"result written to {out}")
    else:
        changes = _changes(plan, model, options, made_from)
        if changes:
            raise FolderError(
                f"{out} holds a plan with other options or inputs ({changes}); add --overwrite to replace it, or "
                "choose another --out"
            )
        notify(f"{out} is finished; nothing to do")
    on_main_process(partial(shutil.rmtree, partial_folder(out), ignore_errors=True), options.device)
    return plan.summary()


def _changes(plan: Plan, model: Model, options: PlanOptions, made_from: Mapping[str, Any]) -> str:
    """Return the differences between a saved plan and the plan that is requested, as text; empty if there are none."""
    criterion = options.criterion or plan.options.get("criterion")
    before = plan.details.get("made_from") or {}
    precision = "mixed_precision"
    changes = differences(
        {"options": {**plan.options, precision: before.get(precision)}, "inputs": before.get("inputs")},
        {"options": {**options.choice(), "criterion": criterion, precision: made_from[precision]}, **made_from},
    )
    if not changes and plan.fingerprint != fingerprint(denoiser_of(model)):
        return "the architecture of the model has changed"
    return changes


def _make_plan_in(folder: Path, model: Model, options: PlanOptions, inputs: Inputs) -> Plan:
    """Make a plan, with the caches of its latents and scores in a folder."""
    latents, sums = latents_in(folder, inputs), sums_in(folder, inputs, options)
    return make_plan(prepare(model, options.kinds, calibrating=options, latents=latents), options, sums)


def _existing_plan(out: Path, existing: Existing) -> Plan | None:
    """Return the plan in the file `out`; None if the file does not exist or is to be replaced."""
    check_replaceable(out, '"fingerprint"')
    return read_plan(out) if out.exists() and existing == "refuse" else None


def _loaded(source: str) -> Model:
    return load_as_stored(source).whole
