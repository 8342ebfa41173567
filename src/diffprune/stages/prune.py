"""Stage `prune`: carry out a plan."""

import copy
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import nn

from diffprune.compensation import Compensation, compensate
from diffprune.data.calibration import Calibration
from diffprune.data.stored import Store
from diffprune.errors import OptionError
from diffprune.models.cards import carry_card
from diffprune.models.loading import denoiser_component, denoiser_of
from diffprune.models.precision import in_stored_dtype, load_as_stored
from diffprune.models.prompts import files_of
from diffprune.models.pruned import PrunedMixin
from diffprune.options import OF_CALIBRATION, UNCALIBRATED_CRITERIA, PlanOptions, PruneOptions
from diffprune.planning import Plan, read_plan
from diffprune.processes import by_main, shared_run
from diffprune.records import Existing, whole_folder, write_json
from diffprune.stages.calls import with_input_and_options
from diffprune.stages.plan import calibration_of, forget_kept, kept_in, plan_and_calibration, settled
from diffprune.stages.stored import prune_folder, stored_model
from diffprune.surgery import check_weights, prune_denoiser

SOLVED = ".compensation"
"""Folder of the layers that compensation has solved, while it lasts."""


@with_input_and_options(PruneOptions)
def prune(model: Any, plan: Plan, options: PruneOptions) -> Any:
    """A pruned copy of a pipeline (or bare denoiser); `model` is untouched and shares its other components.

    Weights are compensated where there are images: those of the plan, or `data`; never in a bare denoiser, which has no
    noise schedule. Raises PlanError when the plan was made for another model, DataError for images that are not there.
    """
    return carry_out(model, plan, options)[0]


def carry_out(
    model: Any,
    plan: Plan,
    options: PruneOptions,
    calibration: Calibration | None = None,
    *,
    store: Store | None = None,
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
            batch_size=by.batch_size, offloaded=by.offload == "cpu", folder=folder,
        )  # fmt: skip
        small = small if done.helped else cut()
        if isinstance(small, PrunedMixin):
            small.pruning_provenance[-1]["compensation"] = done.summary()
    return (small if isinstance(model, nn.Module) else with_denoiser(model, small)), done


def _calibrating(plan: Plan, options: PruneOptions, *, bare: bool = False) -> PlanOptions | None:
    """The options of the images for compensation; None where it is not wanted, or not possible and not asked for."""
    asked = "compensate" in options.model_fields_set and options.compensate
    known = {name: value for name, value in plan.options.items() if name in OF_CALIBRATION}
    by = PlanOptions.model_validate({**known, **({} if options.data is None else {"data": options.data})})
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


def with_denoiser(pipeline: Any, denoiser: ModelMixin) -> Any:
    """A copy of a pipeline that holds another denoiser and shares all other components."""
    changed = copy.copy(pipeline)
    changed.register_modules(**{denoiser_component(changed): denoiser})
    return changed


def publish(model: DiffusionPipeline | ModelMixin, folder: Path) -> None:
    """Save a model and move it into the stage's folder, its index last."""
    with whole_folder(folder / ".pipeline") as beside:
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
    plan_file: Path | None,
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
    plan_options = settled(plan_options)
    by = {} if plan_file is not None else plan_options.resolved()
    calibrating = plan_options if plan_file is None else _calibrating(read_plan(plan_file), options) or plan_options
    inputs = {
        "model": source,
        "plan": str(plan_file) if plan_file is not None else None,
        "data": options.data or calibrating.data,
        **files_of(calibrating.prompts),
    }
    device = plan_options.device
    with shared_run(
        out, "prune", {**by, **options.resolved()}, inputs, device=device, existing=existing, neutral=options.neutral
    ) as run:
        if not run.finished_before:
            kept, model, calibration = run.folder / "plan.json", None, None
            plan = by_main(lambda: _plan_there(kept, plan_file), device)
            store, sums = kept_in(run.folder, inputs, plan_options)
            if plan is None:
                model = load_as_stored(source).whole
                check_weights(denoiser_of(model), reinit=options.reinit)
                plan, calibration = plan_and_calibration(model, plan_options, store, sums)
                if plan.criterion not in UNCALIBRATED_CRITERIA and _calibrating(plan, options) is not None:
                    by_main(partial(plan.save, kept), device)  # it took long, and what follows does
            finish = partial(_into_folder, source, model, plan, options, run.folder, store, calibration)
            run.result = by_main(finish, device)
        return run.result


def _plan_there(kept: Path, plan_file: Path | None) -> Plan | None:
    """The plan that an interrupted run has left, or the one that was given."""
    there = kept if kept.exists() else plan_file
    return None if there is None else read_plan(there)


def _into_folder(
    source: str,
    model: Any,
    plan: Plan,
    options: PruneOptions,
    folder: Path,
    store: Store,
    calibration: Calibration | None,
) -> dict[str, Any]:
    """Carry out a plan; returns what goes into `run.json`. model, calibration: where they are there already."""
    stored = stored_model(source) if model is None and _only_cuts(plan, options) else None
    compensation = None
    if stored is not None:
        prune_folder(stored, plan, folder)
    else:
        model = model or load_as_stored(source).whole
        small, compensation = carry_out(model, plan, options, calibration, store=store, folder=folder / SOLVED)
        publish(in_stored_dtype(small, source), folder)
    plan.save(folder / "plan.json")
    carry_card(source, folder, _paragraph(source, plan, options))
    result = plan.summary()
    if compensation is not None:
        write_json(folder / "compensation.json", asdict(compensation))
        result["compensation"] = compensation.summary()
    forget_kept(folder)
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
