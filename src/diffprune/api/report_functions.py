"""Public functions that analyze models, run recipes and report results."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffprune.api.arguments import existing, model_source, plan_source
from diffprune.api.keyword_options import with_options
from diffprune.api.results import ReportPage, Results
from diffprune.compute.torch_context import default_torch_context
from diffprune.options import SensitivityOptions, StagesOptions
from diffprune.options.recipe import Recipe, read_recipe
from diffprune.planning import Plan
from diffprune.recipes.forecast import forecast
from diffprune.recipes.run_recipe import run_stage
from diffprune.stages.analyze_plan import plan_analysis_stage
from diffprune.stages.analyze_sensitivity import sensitivity_stage
from diffprune.stages.analyze_stages import stages_stage
from diffprune.stages.report_stage import report_stage

Source = str | os.PathLike[str]


@with_options(options=SensitivityOptions)
def analyze_sensitivity(model: Any, options: SensitivityOptions, *, out: Source, overwrite: bool = False) -> Results:
    """Prune one part of a model at a time, at each ratio, and return the error of the output per part.

    model: a pipeline, denoiser, folder, hub id or built-in name.
    out: folder for `sensitivity.png` and run.json; an interrupted call resumes.
    """
    return Results(sensitivity_stage(model_source(model), options, Path(out), existing=existing(overwrite)))


@with_options(options=StagesOptions)
def analyze_stages(model: Any, options: StagesOptions, *, out: Source, overwrite: bool = False) -> Results:
    """Prune a model once per stage of timesteps, and return the similarity of its images to the original's.

    model: a pipeline, denoiser, folder, hub id or built-in name.
    out: folder for `stages.png`, images and run.json; an interrupted call resumes.
    """
    return Results(stages_stage(model_source(model), options, Path(out), existing=existing(overwrite)))


@default_torch_context()
def analyze_plan(
    plan: Plan | Source, other: Plan | Source | None = None, *, out: Source, overwrite: bool = False
) -> Results:
    """Return the share of units that a plan keeps per group; with another plan, also their agreement.

    plan, other: plans of one model, or paths of plan.json. out: folder for `plan.png` and run.json.
    Raises PlanError if the plans are for different models.
    """
    second = None if other is None else plan_source(other)
    return Results(plan_analysis_stage(plan_source(plan), second, Path(out), existing=existing(overwrite)))


@default_torch_context()
def report(folders: Source | Sequence[Source], out: Source, *, title: str = "diffprune") -> ReportPage:
    """Write one HTML page about all finished stages in or below folders; return the page and its table of models.

    Raises FolderError if no stage is finished, or if `out` is a file that diffprune did not write.
    """
    places = [folders] if isinstance(folders, str | os.PathLike) else folders
    result = report_stage([Path(place) for place in places], Path(out), title=title)
    return ReportPage(Path(result["report"]), result["models"])


@default_torch_context()
def run(recipe: Recipe | Source, out: Source, *, changes: Sequence[str] = (), dry_run: bool = False) -> Results:
    """Run all stages of a recipe inside the folder `out`; returns the table of models and the path of the report.

    recipe: a recipe, the path of its YAML file, or the name of a shipped recipe such as `cifar10`. changes: options
    that replace options of the recipe, such as `finetune.steps=100`. A finished stage of the same options and inputs is
    kept, an interrupted stage resumes.
    dry_run: check everything, write nothing, and return one row per stage with its inputs, outputs and duration.
    Raises OptionError that lists every mistake before any work.
    """
    chosen = recipe if isinstance(recipe, Recipe) else read_recipe(recipe, changes)
    return Results((forecast if dry_run else run_stage)(chosen, Path(out)))
