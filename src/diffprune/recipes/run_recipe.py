"""Command `run`: run the stages of a recipe in order; finished stages are not repeated."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from diffprune.options import EvaluateOptions, PlanOptions, StatsOptions
from diffprune.options.recipe import METRIC_KINDS, Recipe
from diffprune.recipes.recipe_checks import check_recipe
from diffprune.runs.distributed import on_main_process
from diffprune.runs.stage_progress import stage_progress, start_stage
from diffprune.stages.evaluate_stage import evaluate_stage
from diffprune.stages.finetune_stage import finetune_stage
from diffprune.stages.plan_stage import plan_stage
from diffprune.stages.prune_stage import prune_stage
from diffprune.stages.report_stage import report_stage
from diffprune.stages.sample_stage import sample_stage
from diffprune.stages.stats_stage import stats_stage
from diffprune.stages.train_classifier_stage import classifier_stage
from diffprune.stages.train_stage import train_stage

REFERENCE = "reference.npz"
"""Statistics of the reference, computed once for all models."""

R = TypeVar("R")


def run_stage(recipe: Recipe, out: Path) -> dict[str, Any]:
    """Run the stages of a recipe inside the folder `out`; return the figures of the report.

    A finished stage with the same options and inputs is kept, an interrupted stage resumes, any other stage is rerun.
    All ranks score, train, sample and evaluate; the main process does everything else.
    Raises OptionError that lists every mistake before any work.
    """
    check_recipe(recipe, fetch=True)
    with stage_progress(num_stages(recipe)):
        return _run(recipe, out)


def num_stages(recipe: Recipe) -> int:
    """Return the number of stages of a recipe, for the progress bar."""
    variants = 0 if recipe.plan is None else len(recipe.compare or (None,))
    recovers = recipe.finetune is not None
    count = (recipe.classifier is not None) + makes_statistics(recipe) + (recipe.train is not None)
    count += variants * (2 + recovers)
    if recipe.sample is None:
        return count
    models = 1 + variants * (1 + recovers)
    return count + models + (recipe.evaluate is not None) + 1


def _run(recipe: Recipe, out: Path) -> dict[str, Any]:
    """Run the stages, and return the table of models and the path of the report."""
    if recipe.classifier is not None:
        classifier = recipe.classifier
        _on_main_process(
            recipe, "train-classifier", lambda: classifier_stage(classifier, out / "classifier", existing="replace")
        )
    if makes_statistics(recipe):
        start_stage("stats")
        _statistics(recipe, out / REFERENCE)
    models: dict[str, str] = {}
    if recipe.train is not None:
        start_stage("train")
        train_stage(recipe.section("train"), out / "trained", existing="replace")
        models["original"] = str(out / "trained")
    elif recipe.model is not None:
        models["original"] = recipe.model
    if recipe.plan is not None:
        for variant in recipe.compare or (None,):
            models |= _smaller_models(recipe, models["original"], out, variant)
    if recipe.sample is None:
        return {"models": models}
    for name, model in models.items():
        start_stage(f"sample {name}")
        sample_stage(model, recipe.sample, out / "samples" / name, existing="replace")
    if recipe.evaluate is not None:
        start_stage("evaluate")
        _evaluate(recipe, recipe.evaluate, list(models), out)
    page = out / "report.html"
    return _on_main_process(
        recipe, "report", lambda: report_stage(_stage_folders(recipe, out, models), page, title=recipe.name)
    )


def makes_statistics(recipe: Recipe) -> bool:
    """Return whether a stage computes statistics of the reference: none is needed if they are a file."""
    return bool(recipe.metrics("statistics")) and Path(recipe.judged_by or "").suffix != ".npz"


def metrics_folders(recipe: Recipe, names: list[str], out: Path) -> list[Path]:
    """Return the folders of metrics: one per model and kind of metric."""
    return [out / "metrics" / name / kind for name in names for kind in METRIC_KINDS if recipe.metrics(kind)]


def _smaller_models(recipe: Recipe, original: str, out: Path, variant: str | None) -> dict[str, str]:
    """Plan, prune and finetune; return name -> folder of the pruned and the recovered model.

    variant: the criterion, whose results are in a subfolder of its name; None if no criteria are compared.
    """
    place = out if variant is None else out / variant
    prefix = "" if variant is None else f"{variant}-"
    plan_options, prune_options = (
        (recipe.section("plan"), recipe.pruning) if variant is None else recipe.variant(variant)
    )
    plan, pruned = place / "plan", place / "pruned"
    start_stage(f"plan {variant or ''}".strip())
    plan_stage(original, plan_options, plan, existing="replace")
    start_stage(f"prune {variant or ''}".strip())
    prune_stage(original, prune_options, PlanOptions(), plan / "plan.json", pruned, existing="replace")
    models = {f"{prefix}pruned": str(pruned)}
    if recipe.finetune is not None:
        start_stage(f"finetune {variant or ''}".strip())
        options = recipe.section("finetune")
        teacher = original if options.distill else None
        finetune_stage(str(pruned), teacher, options, place / "recovered", existing="replace")
        models[f"{prefix}recovered"] = str(place / "recovered")
    return models


def _statistics(recipe: Recipe, out: Path) -> dict[str, Any]:
    assert recipe.evaluate is not None
    assert recipe.judged_by is not None
    shared = recipe.evaluate.model_dump(include=set(StatsOptions.model_fields) - {"num"})
    options = StatsOptions(**{**shared, "metrics": recipe.metrics("statistics")})
    return stats_stage(recipe.judged_by, options, out, existing="replace")


def _evaluate(recipe: Recipe, options: EvaluateOptions, names: list[str], out: Path) -> None:
    references = {
        "pairs": str(out / "samples" / "original"),
        "statistics": str(out / REFERENCE) if makes_statistics(recipe) else recipe.judged_by,
        "sets": recipe.judged_by,
        "alone": None,
    }
    for name in names:
        for kind in METRIC_KINDS:
            if metrics := recipe.metrics(kind):
                images, place = str(out / "samples" / name), out / "metrics" / name / kind
                chosen = options.model_copy(update={"metrics": metrics})
                evaluate_stage(images, references[kind], chosen, place, existing="replace")


def _on_main_process(recipe: Recipe, stage: str, work: Callable[[], R]) -> R:
    """Run a stage on the main process; the other ranks wait."""
    start_stage(stage)
    sections = (recipe.finetune, recipe.train, recipe.sample, recipe.plan, recipe.evaluate, recipe.classifier)
    device = next((section.device for section in sections if section is not None), "auto")
    return on_main_process(work, device)


def _stage_folders(recipe: Recipe, out: Path, models: dict[str, str]) -> list[Path]:
    """Return the stage folders of this recipe; `out` may hold more folders, of an earlier version of the recipe."""
    places = [out] if recipe.compare is None else [out / variant for variant in recipe.compare]
    folders = [out / "classifier", out / "trained"]
    folders += [place / stage for place in places for stage in ("plan", "pruned", "recovered")]
    folders += [out / "samples" / name for name in models]
    folders += metrics_folders(recipe, list(models), out)
    skipped = {"classifier": recipe.classifier, "trained": recipe.train, "recovered": recipe.finetune}
    return [f for f in folders if f.exists() and skipped.get(f.name, True) is not None]
