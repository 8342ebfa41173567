"""The calls of the commands: each passes the parsed arguments to its stage, imported only then."""

import importlib
from argparse import Namespace
from pathlib import Path
from typing import Any

from diffprune import options as sets
from diffprune.cli.command import ParsedOptions
from diffprune.errors import OptionError


def inspect(a: Namespace, parsed: ParsedOptions) -> Any:
    """Call the stage of `inspect`."""
    return _call("inspect_stage.inspect_stage", a.model, parsed(sets.InspectOptions))


def plan(a: Namespace, parsed: ParsedOptions) -> Any:
    """Call the stage of `plan`."""
    return _call("plan_stage.plan_stage", a.model, parsed(sets.PlanOptions), a.out, existing=_existing(a))


def prune(a: Namespace, parsed: ParsedOptions) -> Any:
    """Call the stage of `prune`."""
    options = parsed(sets.PruneOptions), parsed(sets.PlanOptions)
    plan_file = Path(a.plan) if a.plan else None
    return _call("prune_stage.prune_stage", a.model, *options, plan_file, a.out, existing=_existing(a))


def finetune(a: Namespace, parsed: ParsedOptions) -> Any:
    """Call the stage of `finetune`."""
    options = parsed(sets.FinetuneOptions)
    return _call("finetune_stage.finetune_stage", a.model, a.teacher, options, a.out, existing=_existing(a))


def sample(a: Namespace, parsed: ParsedOptions) -> Any:
    """Call the stage of `sample`."""
    return _call("sample_stage.sample_stage", a.model, parsed(sets.SampleOptions), a.out, existing=_existing(a))


def evaluate(a: Namespace, parsed: ParsedOptions) -> Any:
    """Call the stage of `evaluate`."""
    options = parsed(sets.EvaluateOptions)
    return _call("evaluate_stage.evaluate_stage", a.images, a.reference, options, a.out, existing=_existing(a))


def report(a: Namespace, parsed: ParsedOptions) -> Any:
    """Call the stage of `report`."""
    return _call("report_stage.report_stage", [Path(folder) for folder in a.folders], a.out, title="diffprune")


def run(a: Namespace, parsed: ParsedOptions) -> Any:
    """Run a recipe, or with --dry-run check it and estimate its times."""
    from diffprune.options.recipe import read_recipe

    changes = [*(a.set or []), *([f"compare=[{', '.join(a.compare)}]"] if a.compare else [])]
    recipe = read_recipe(a.recipe, changes)
    if a.dry_run:
        return _call("recipes.forecast.forecast", recipe, a.out)
    return _call("recipes.run_recipe.run_stage", recipe, a.out)


def demo(a: Namespace, parsed: ParsedOptions) -> Any:
    """Run the recipe `demo`."""
    from diffprune.options.recipe import read_recipe

    return _call("recipes.run_recipe.run_stage", read_recipe("demo"), a.out)


def train(a: Namespace, parsed: ParsedOptions) -> Any:
    """Call the stage of `train` with options, or with the train section of a recipe."""
    if a.recipe is None:
        return _call("train_stage.train_stage", parsed(sets.TrainOptions), a.out, existing=_existing(a))
    from diffprune.options.recipe import read_recipe

    recipe = read_recipe(a.recipe)
    if recipe.train is None:
        raise OptionError(f"{a.recipe} has no train section. Choose a recipe that has one, or use options instead")
    if parsed.values:
        names = ", ".join(sorted(parsed.values))
        raise OptionError(f"got a recipe and options of train ({names}). Remove the options or the recipe")
    return _call("train_stage.train_stage", recipe.section("train"), a.out, existing=_existing(a))


def convert(a: Namespace, parsed: ParsedOptions) -> Any:
    """Call the stage of `convert`."""
    options = parsed(sets.ConvertOptions)
    return _call("convert_stage.convert_stage", a.format, a.file, options, a.out, existing=_existing(a))


def data(a: Namespace, parsed: ParsedOptions) -> Any:
    """Call the stage of `data`."""
    options = parsed(sets.DataOptions)
    return _call("data_stage.data_stage", a.name, a.archive, options, a.out, existing=_existing(a))


def stats(a: Namespace, parsed: ParsedOptions) -> Any:
    """Call the stage of `stats`."""
    return _call("stats_stage.stats_stage", a.images, parsed(sets.StatsOptions), a.out, existing=_existing(a))


def analyze_stages(a: Namespace, parsed: ParsedOptions) -> Any:
    """Call the stage of `analyze stages`."""
    options = parsed(sets.StagesOptions)
    return _call("analyze_stages.stages_stage", a.model, options, a.out, existing=_existing(a))


def analyze_sensitivity(a: Namespace, parsed: ParsedOptions) -> Any:
    """Call the stage of `analyze sensitivity`."""
    options = parsed(sets.SensitivityOptions)
    return _call("analyze_sensitivity.sensitivity_stage", a.model, options, a.out, existing=_existing(a))


def analyze_plan(a: Namespace, parsed: ParsedOptions) -> Any:
    """Call the stage of `analyze plan`."""
    return _call("analyze_plan.plan_analysis_stage", a.plan, a.other, a.out, existing=_existing(a))


def recipes(a: Namespace, parsed: ParsedOptions) -> Any:
    """List the shipped recipes, or return the text of one, or copy one to a file."""
    from diffprune.options.shipped_recipes import copy_recipe, describe_recipes, recipe_text

    if a.name is None:
        return {"recipes": describe_recipes()}
    return recipe_text(a.name) if a.out is None else {"recipe": str(copy_recipe(a.name, a.out))}


def _call(path: str, *args: Any, **kwargs: Any) -> Any:
    """Call a function of `stages`, or of another room where `path` names it; its module is imported here."""
    from diffusers.utils import logging

    from diffprune.compute.torch_context import default_torch_context

    logging.disable_progress_bar()
    module, _, name = path.rpartition(".")
    room = "diffprune" if "." in module else "diffprune.stages"
    with default_torch_context():
        return getattr(importlib.import_module(f"{room}.{module}"), name)(*args, **kwargs)


def _existing(a: Namespace) -> str:
    return "redo" if a.overwrite else "refuse"
