"""Public functions that inspect, plan, prune and convert a model."""

import os
from pathlib import Path
from typing import Any

from diffprune.api.arguments import existing, model_source, model_value, plan_source, plan_value
from diffprune.api.keyword_options import with_options
from diffprune.api.results import Results
from diffprune.errors import OptionError
from diffprune.options import ConvertOptions, InspectOptions, PlanOptions, PruneOptions
from diffprune.pipelines.loading import load_model
from diffprune.pipelines.stored_dtype import load_as_stored
from diffprune.planning import Plan
from diffprune.stages.convert_stage import convert_checkpoint, convert_stage
from diffprune.stages.inspect_stage import inspect_stage
from diffprune.stages.plan_stage import plan_model, plan_stage
from diffprune.stages.prune_stage import prune_model, prune_stage

Source = str | os.PathLike[str]


@with_options(options=InspectOptions)
def inspect(model: Any, options: InspectOptions) -> Results:
    """Return facts about a model: class, parameters, MACs, latency, prunable units, and one row per block.

    model: a pipeline, denoiser, folder, hub id, config.json or built-in name. Raises ModelError.
    """
    return Results(inspect_stage(model_source(model), options))


@with_options(options=PlanOptions)
def plan(model: Any, options: PlanOptions, *, out: Source | None = None, overwrite: bool = False) -> Plan:
    """Choose the units of a model to keep, and return the plan; the model is not changed.

    model: a pipeline, denoiser, folder, hub id, config.json or built-in name. A bare denoiser has no noise schedule, so
    its criterion must need no images. For a config.json or parameters on the meta device the choice is random: a
    forecast of the cost. out: a folder or a .json file for the plan; an interrupted call with `out` resumes.
    overwrite: replace a plan with other options.
    Raises OptionError, ModelError or DataError before any work if an argument is wrong or missing.
    """
    if out is None:
        return plan_model(model_value(model), options)
    path = Path(out)
    plan_stage(model_source(model), options, path, existing=existing(overwrite))
    return plan_value(path)


@with_options(options=PruneOptions, plan_options=PlanOptions)
def prune(
    model: Any,
    plan: Plan | Source | None = None,
    *,
    options: PruneOptions,
    plan_options: PlanOptions,
    out: Source | None = None,
    overwrite: bool = False,
) -> Any:
    """Return a pruned copy of a pipeline or denoiser; `model` is unchanged and shares its other components.

    model: a pipeline, denoiser, folder, hub id or built-in name. plan: a plan or the path of a plan.json; None makes a
    plan from the options of `plan`. Kept weights are compensated on the images of the plan, or on `data`. A bare
    denoiser has no noise schedule and is not compensated. out: folder for the pruned model; an interrupted call with
    `out` resumes.
    Raises PlanError if the plan is for another model, OptionError for both a plan and options of `plan`.
    """
    if out is not None:
        file: Any = None if plan is None else plan_source(plan)
        prune_stage(model_source(model), options, plan_options, file, Path(out), existing=existing(overwrite))
        return load_as_stored(os.fspath(out)).whole
    value = model_value(model)
    if plan is None:
        return prune_model(value, options, plan_options=plan_options)[0]
    superfluous = sorted(plan_options.model_fields_set - {*PruneOptions.model_fields})
    if superfluous:
        raise OptionError(
            f"{', '.join(superfluous)}: the plan already holds these options; leave them out, or leave the plan out"
        )
    return prune_model(value, options, plan_value(plan))[0]


@with_options(options=ConvertOptions)
def convert(
    format: str, file: Source, options: ConvertOptions, *, out: Source | None = None, overwrite: bool = False
) -> Any:
    """Return the pipeline of a checkpoint file (path, or http(s) address with `sha256`); nothing in it is executed.

    format: `ddpm`, the research format of DDPM and DDIM; `ldm`, latent diffusion; `shapes`, weights pruned by other
    software. `shapes` needs the unpruned model as `arch`; if that is a config.json, the result is a bare denoiser.
    out: folder for the result. Raises ModelError with the names of the tensors that do not fit.
    """
    if out is None:
        return convert_checkpoint(format, os.fspath(file), options)
    convert_stage(format, os.fspath(file), options, Path(out), existing=existing(overwrite))
    return load_model(os.fspath(out)).whole
