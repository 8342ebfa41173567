"""Stage `run`: all stages of a recipe, one after the other; finished ones are not run again."""

import sys
from pathlib import Path
from typing import Any

from diffprune.models.loading import load_model
from diffprune.options import LONE_METRICS, PAIRED_METRICS, EvaluateOptions
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
        classifier_stage(recipe.classifier, out / "classifier", overwrite=True)
    models: dict[str, str] = {}
    if recipe.train is not None:
        _say("train")
        train_stage(recipe.section("train"), out / "trained", overwrite=True)
        models["original"] = str(out / "trained")
    elif recipe.model is not None:
        load_model(recipe.model)
        models["original"] = recipe.model
    if recipe.plan is not None:
        models |= _smaller_models(recipe, models["original"], out)
    if recipe.sample is None:
        return {"models": models}
    for name, model in models.items():
        _say(f"sample {name}")
        sample_stage(model, recipe.sample, out / "samples" / name, overwrite=True)
    if recipe.evaluate is not None:
        _evaluate(recipe, recipe.evaluate, list(models), out)
    _say("report")
    return report_stage([out], out / "report.html", title=recipe.name)


def _smaller_models(recipe: Recipe, original: str, out: Path) -> dict[str, str]:
    _say("plan")
    plan_stage(original, recipe.section("plan"), out / "plan", overwrite=True)
    _say("prune")
    no_plan_options = type(recipe.section("plan"))()
    prune_stage(original, recipe.prune, no_plan_options, out / "plan" / "plan.json", out / "pruned", overwrite=True)
    models = {"pruned": str(out / "pruned")}
    if recipe.finetune is not None:
        _say("finetune")
        options = recipe.section("finetune")
        teacher = original if options.distill else None
        finetune_stage(models["pruned"], teacher, options, out / "recovered", overwrite=True)
        models["recovered"] = str(out / "recovered")
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
                evaluate_stage(images, reference, chosen, out / "metrics" / name / kind, overwrite=True)


def _say(stage: str) -> None:
    print(f"== {stage}", file=sys.stderr, flush=True)
