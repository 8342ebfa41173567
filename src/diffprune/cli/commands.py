"""The commands: what each takes beside its stage's options, and which stage it calls. Imports no torch."""

import argparse
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from diffprune import options as sets
from diffprune.errors import OptionError
from diffprune.options import Options, parse_options

MODEL = "pipeline or denoiser folder, hub id, config.json, or a built-in name (digits, ddpm-cifar10, ...)"
IMAGES = "folder of images; for metrics of sets also a parquet file, a dataset id, `digits` or statistics (.npz)"
REFERENCE = "what to compare with, as IMAGES; inception_score and clip_score need none"
DATA = "folder of images, parquet file, dataset id or `digits`"

Set = TypeVar("Set", bound=Options)
Arguments = argparse.Namespace


@dataclass(frozen=True)
class Command:
    """One command: its arguments beside the stage's options, and the call."""

    summary: str
    positionals: Mapping[str, str]
    options: tuple[type[Options], ...]
    call: Callable[[Arguments, "ParsedOptions"], Any]
    out: Literal["required", "optional", "default", None] = None
    json: bool = True
    extras: tuple[tuple[str, str], ...] = ()
    flags: tuple[tuple[str, str], ...] = ()


class ParsedOptions:
    """The options of a command line, validated per option set."""

    def __init__(self, values: dict[str, str]) -> None:
        self._values = values

    def __call__(self, kind: type[Set], **more: Any) -> Set:
        """The values that belong to this option set, checked."""
        mine = {k: v for k, v in self._values.items() if k in kind.model_fields}
        return parse_options(kind, {**mine, **more}, what="command line")

    def names(self) -> set[str]:
        """The options that were given."""
        return set(self._values)


def _stage(module: str, name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        from diffusers.utils import logging

        logging.disable_progress_bar()
        return getattr(importlib.import_module(f"diffprune.{module}"), name)(*args, **kwargs)

    return call


def _existing(a: Arguments) -> str:
    return "redo" if a.overwrite else "refuse"


def _inspect(a: Arguments, given: ParsedOptions) -> Any:
    return _stage("stages.inspect_stage", "inspect_stage")(a.model, given(sets.InspectOptions))


def _plan(a: Arguments, given: ParsedOptions) -> Any:
    return _stage("stages.plan_stage", "plan_stage")(a.model, given(sets.PlanOptions), a.out, existing=_existing(a))


def _data(a: Arguments, given: ParsedOptions) -> Any:
    return _stage("stages.data_stage", "data_stage")(
        a.name, a.archive, given(sets.DataOptions), a.out, existing=_existing(a)
    )


def _prune(a: Arguments, given: ParsedOptions) -> Any:
    chosen = given(sets.PruneOptions), given(sets.PlanOptions)
    plan = Path(a.plan) if a.plan else None
    return _stage("stages.prune_stage", "prune_stage")(a.model, *chosen, plan, a.out, existing=_existing(a))


def _train(a: Arguments, given: ParsedOptions) -> Any:
    if a.recipe is None:
        return _stage("stages.train_stage", "train_stage")(given(sets.TrainOptions), a.out, existing=_existing(a))
    from diffprune.options.recipe import read_recipe

    recipe = read_recipe(a.recipe)
    if recipe.train is None:
        raise OptionError(f"{a.recipe} has no train section")
    if given.names():
        raise OptionError(f"the recipe holds the options of train; drop {', '.join(sorted(given.names()))}")
    return _stage("stages.train_stage", "train_stage")(recipe.section("train"), a.out, existing=_existing(a))


def _finetune(a: Arguments, given: ParsedOptions) -> Any:
    options = given(sets.FinetuneOptions)
    return _stage("stages.train_stage", "finetune_stage")(a.model, a.teacher, options, a.out, existing=_existing(a))


def _sample(a: Arguments, given: ParsedOptions) -> Any:
    return _stage("stages.sample_stage", "sample_stage")(
        a.model, given(sets.SampleOptions), a.out, existing=_existing(a)
    )


def _evaluate(a: Arguments, given: ParsedOptions) -> Any:
    options = given(sets.EvaluateOptions)
    return _stage("stages.evaluate_stage", "evaluate_stage")(
        a.images, a.reference, options, a.out, existing=_existing(a)
    )


def _stats(a: Arguments, given: ParsedOptions) -> Any:
    return _stage("stages.stats_stage", "stats_stage")(a.images, given(sets.StatsOptions), a.out, existing=_existing(a))


def _analyze_stages(a: Arguments, given: ParsedOptions) -> Any:
    return _stage("stages.analyze_stages", "stages_stage")(
        a.model, given(sets.StagesOptions), a.out, existing=_existing(a)
    )


def _analyze_sensitivity(a: Arguments, given: ParsedOptions) -> Any:
    options = given(sets.SensitivityOptions)
    return _stage("stages.analyze_sensitivity", "sensitivity_stage")(a.model, options, a.out, existing=_existing(a))


def _analyze_plan(a: Arguments, given: ParsedOptions) -> Any:
    return _stage("stages.analyze_plan", "plan_analysis_stage")(a.plan, a.other, a.out, existing=_existing(a))


def _convert(a: Arguments, given: ParsedOptions) -> Any:
    options = given(sets.ConvertOptions)
    return _stage("stages.convert_stage", "convert_stage")(a.format, a.file, options, a.out, existing=_existing(a))


def _report(a: Arguments, given: ParsedOptions) -> Any:
    return _stage("stages.report_stage", "report_stage")([Path(d) for d in a.folders], a.out, title="diffprune")


def _run(a: Arguments, given: ParsedOptions) -> Any:
    from diffprune.options.recipe import read_recipe

    changes = [*(a.set or []), *([f"compare=[{', '.join(a.compare)}]"] if a.compare else [])]
    recipe = read_recipe(a.recipe, changes)
    if a.dry_run:
        return _stage("recipes.forecast", "forecast")(recipe, a.out)
    return _stage("recipes.run_recipe", "run_stage")(recipe, a.out)


def _demo(a: Arguments, given: ParsedOptions) -> Any:
    from diffprune.options.recipe import read_recipe

    return _stage("recipes.run_recipe", "run_stage")(read_recipe("demo"), a.out)


def _recipes(a: Arguments, given: ParsedOptions) -> Any:
    from diffprune.options.shipped_recipes import copy_recipe, describe_recipes, recipe_text

    if a.name is None:
        return {"recipes": describe_recipes()}
    return recipe_text(a.name) if a.out is None else {"recipe": str(copy_recipe(a.name, a.out))}


COMMANDS: Mapping[str, Command] = {
    "demo": Command("the whole road on handwritten digits, in minutes", {}, (), _demo, "default"),
    "data": Command(
        "make a published data set into images",
        {"name": "cifar10, cifar100, celeba, lsun-church, lsun-bedroom or ffhq"},
        (sets.DataOptions,),
        _data,
        "required",
        extras=(
            ("archive", "file, folder or URL of the archive (default: the official download, where there is one)"),
        ),
    ),
    "inspect": Command("what a model is and costs", {"model": MODEL}, (sets.InspectOptions,), _inspect),
    "plan": Command("score units and choose which stay", {"model": MODEL}, (sets.PlanOptions,), _plan, "optional"),
    "prune": Command(
        "carry out a plan",
        {"model": MODEL},
        (sets.PlanOptions, sets.PruneOptions),
        _prune,
        "required",
        extras=(("plan", "plan.json to carry out, instead of the options of plan"),),
    ),
    "convert": Command(
        "bring a checkpoint of another system into diffusers form",
        {"format": "ddpm, ldm or shapes", "file": "checkpoint: path, or http(s) address with --sha256"},
        (sets.ConvertOptions,),
        _convert,
        "required",
    ),
    "train": Command(
        "train a denoiser from scratch",
        {"recipe?": "recipe whose train section holds the options"},
        (sets.TrainOptions,),
        _train,
        "required",
    ),
    "finetune": Command(
        "recover a pruned model",
        {"model": MODEL},
        (sets.FinetuneOptions,),
        _finetune,
        "required",
        extras=(("teacher", "original model for output distillation (as MODEL)"),),
    ),
    "sample": Command("draw images", {"model": MODEL}, (sets.SampleOptions,), _sample, "required"),
    "evaluate": Command(
        "compare images with a reference",
        {"images": IMAGES, "reference?": REFERENCE},
        (sets.EvaluateOptions,),
        _evaluate,
        "optional",
    ),
    "stats": Command(
        "statistics of an image set, to compare others with", {"images": DATA}, (sets.StatsOptions,), _stats, "required"
    ),
    "analyze stages": Command(
        "which timesteps make the best scores", {"model": MODEL}, (sets.StagesOptions,), _analyze_stages, "required"
    ),
    "analyze sensitivity": Command(
        "which parts of a model bear pruning",
        {"model": MODEL},
        (sets.SensitivityOptions,),
        _analyze_sensitivity,
        "required",
    ),
    "analyze plan": Command(
        "what a plan keeps, drawn, or held against another",
        {"plan": "plan.json", "other?": "plan.json of the same model to compare with"},
        (),
        _analyze_plan,
        "required",
        flags=(("overwrite", "replace a result made from other plans"),),
    ),
    "report": Command("one page of what stages left behind", {"folders+": "stage folders"}, (), _report, "required"),
    "run": Command(
        "all stages of a recipe",
        {"recipe": "shipped recipe or YAML file"},
        (),
        _run,
        "required",
        extras=(
            ("set+", "options in place of the recipe's, such as finetune.steps=100 sample.num=64"),
            ("compare+", "criteria to walk the road with, in place of plan's; scratch is fresh weights"),
        ),
        flags=(("dry-run", "check everything, tell what would be read, written and how long it takes, and stop"),),
    ),
    "recipes": Command(
        "list the shipped recipes, print one, or copy one to a file",
        {"name?": "recipe to print or copy (default: list all)"},
        (),
        _recipes,
        "optional",
    ),
}
