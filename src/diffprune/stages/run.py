"""Stage `run`: all stages of a recipe, one after the other; finished ones are not run again."""

import sys
from pathlib import Path
from typing import Any

from diffprune.models.loading import load_model
from diffprune.options import LONE_METRICS, PAIRED_METRICS, EvaluateOptions, PlanOptions
from diffprune.recipes import Recipe
from diffprune.stages.classifier import classifier_stage
from diffprune.stages.evaluate import evaluate_stage
from diffprune.stages.plan import plan_stage
from diffprune.stages.prune import prune_stage
from diffprune.stages.report import report_stage
from diffprune.stages.sample import sample_stage
from diffprune.stages.train import finetune_stage, train_stage


def run_stage(recipe: Recipe, out: Path) -> dict[str, Any]:
    """Walk a recipe's road inside the folder `out`; returns the figures of the report.

    A stage that is finished there with the same options and inputs is kept, an interrupted one resumes, any
    other is made anew.
    """
    if recipe.classifier is not None:
        _say("train-classifier")
        classifier_stage(recipe.classifier, out / "classifier", existing="replace")
    models: dict[str, str] = {}
    if recipe.train is not None:
        _say("train")
        train_stage(recipe.section("train"), out / "trained", existing="replace")
        models["original"] = str(out / "trained")
    elif recipe.model is not None:
        load_model(recipe.model)
        models["original"] = recipe.model
    if recipe.plan is not None:
        for variant in recipe.compare or (None,):
            models |= _smaller_models(recipe, models["original"], out, variant)
    if recipe.sample is None:
        return {"models": models}
    for name, model in models.items():
        _say(f"sample {name}")
        sample_stage(model, recipe.sample, out / "samples" / name, existing="replace")
    if recipe.evaluate is not None:
        _evaluate(recipe, recipe.evaluate, list(models), out)
    _say("report")
    return report_stage(_visited(recipe, out, models), out / "report.html", title=recipe.name)


def _smaller_models(recipe: Recipe, original: str, out: Path, variant: str | None) -> dict[str, str]:
    """Name -> folder of the pruned and the recovered model; of a compared criterion, in a folder of its own."""
    place = out if variant is None else out / variant
    prefix = "" if variant is None else f"{variant}-"
    choose, carry_out = (recipe.section("plan"), recipe.prune) if variant is None else recipe.variant(variant)
    _say(f"plan {variant or ''}")
    plan_stage(original, choose, place / "plan", existing="replace")
    _say(f"prune {variant or ''}")
    prune_stage(original, carry_out, PlanOptions(), place / "plan" / "plan.json", place / "pruned", existing="replace")
    models = {f"{prefix}pruned": str(place / "pruned")}
    if recipe.finetune is not None:
        _say(f"finetune {variant or ''}")
        options = recipe.section("finetune")
        teacher = original if options.distill else None
        finetune_stage(str(place / "pruned"), teacher, options, place / "recovered", existing="replace")
        models[f"{prefix}recovered"] = str(place / "recovered")
    return models


def _evaluate(recipe: Recipe, options: EvaluateOptions, names: list[str], out: Path) -> None:
    _say("evaluate")
    paired = tuple(m for m in options.metrics if m in PAIRED_METRICS)
    alone = tuple(m for m in options.metrics if m in LONE_METRICS)
    of_sets = tuple(m for m in options.metrics if m not in PAIRED_METRICS + LONE_METRICS)
    original = str(out / "samples" / "original")
    for name in names:
        images = str(out / "samples" / name)
        of_data = recipe.reference or recipe.data
        for metrics, reference, kind in (
            (paired, original, "pairs"),
            (of_sets, of_data, "sets"),
            (alone, None, "alone"),
        ):
            if metrics:
                chosen = options.model_copy(update={"metrics": metrics})
                evaluate_stage(images, reference, chosen, out / "metrics" / name / kind, existing="replace")


def _visited(recipe: Recipe, out: Path, models: dict[str, str]) -> list[Path]:
    """The folders of this road's stages; `out` may hold those of a recipe that has changed since."""
    places = [out] if recipe.compare is None else [out / variant for variant in recipe.compare]
    folders = [out / "classifier", out / "trained"]
    folders += [place / stage for place in places for stage in ("plan", "pruned", "recovered")]
    folders += [out / "samples" / name for name in models]
    folders += [out / "metrics" / name / kind for name in models for kind in ("pairs", "sets", "alone")]
    skipped = {"classifier": recipe.classifier, "trained": recipe.train, "recovered": recipe.finetune}
    return [f for f in folders if f.exists() and skipped.get(f.name, True) is not None]


def _say(stage: str) -> None:
    print(f"== {stage.strip()}", file=sys.stderr, flush=True)
