"""Recipes: the options of a whole road in one YAML file. Imports no torch."""

import os
from collections.abc import Sequence
from typing import Any, Literal, get_args

import yaml
from pydantic import Field, ValidationInfo, field_validator, model_validator

from diffprune.errors import OptionError
from diffprune.options import (
    LONE_METRICS,
    MOMENT_METRICS,
    OWN_OF_DIFF_PRUNING,
    PAIRED_METRICS,
    ClassifierOptions,
    Criterion,
    EvaluateOptions,
    FinetuneOptions,
    Options,
    PlanOptions,
    PruneOptions,
    RunOptions,
    SampleOptions,
    TrainOptions,
    parse_options,
)
from diffprune.options.shipped_recipes import find_recipe

Variant = Literal["scratch", Criterion]
MetricKind = Literal["pairs", "statistics", "sets", "alone"]
METRIC_KINDS: tuple[MetricKind, ...] = get_args(MetricKind)
"""What images are compared with: the original's by index, statistics of the reference, the reference, nothing."""


class RecoverOptions(FinetuneOptions):
    """Recovery in a recipe, where the teacher can only be the original."""

    distill: bool = Field(default=True, description="distil the original's output")

    @model_validator(mode="after")
    def _no_idle_weight(self) -> "RecoverOptions":
        if not self.distill and "teacher_weight" in self.model_fields_set:
            raise ValueError("teacher_weight needs distill; leave one of the two out")
        return self


class Recipe(Options):
    """One road: a model (given or trained), then whichever stages have a section, in this order."""

    name: str = Field(description="what the experiment is called")
    model: str | None = Field(default=None, description="MODEL to start from; left out where `train` makes it")
    data: str | None = Field(default=None, description="DATA of every stage that does not name its own")
    reference: str | None = Field(
        default=None, description="REFERENCE of metrics of sets, images or statistics; left out: the data"
    )
    classifier: ClassifierOptions | None = Field(default=None, description="train the digit classifier")
    train: TrainOptions | None = Field(default=None, description="train the model from scratch")
    compare: tuple[Variant, ...] | None = Field(
        default=None,
        min_length=1,
        description="walk the road once per criterion, in place of plan's; scratch is random choice and fresh weights",
    )
    plan: PlanOptions | None = Field(default=None, description="score units and choose which stay")
    prune: PruneOptions = Field(default=PruneOptions(), description="carry out the plan")
    finetune: RecoverOptions | None = Field(default=None, description="recover the pruned model")
    sample: SampleOptions | None = Field(default=None, description="draw images of every model, from the same noise")
    evaluate: EvaluateOptions | None = Field(
        default=None, description="pairs against the original's images, sets against the data"
    )

    @field_validator("train", "plan", "finetune")
    @classmethod
    def _has_images(cls, section: Any, info: ValidationInfo) -> Any:
        if section is None or info.data.get("data", "invalid") or section.data:
            return section
        if info.field_name == "plan" and section.criterion in ("random", "magnitude"):
            return section
        raise ValueError("needs images: give data, here or for the whole recipe")

    @field_validator("plan")
    @classmethod
    def _has_one_model(cls, section: PlanOptions | None, info: ValidationInfo) -> PlanOptions | None:
        known = {"model", "train"} <= info.data.keys()
        if section is not None and known and (info.data["model"] is None) == (info.data["train"] is None):
            raise ValueError("needs a model: either `model` or a `train` section, not both")
        return section

    @field_validator("sample")
    @classmethod
    def _has_something_to_draw(cls, section: SampleOptions | None, info: ValidationInfo) -> SampleOptions | None:
        known = {"model", "train"} <= info.data.keys()
        if section is not None and known and info.data["model"] is None and info.data["train"] is None:
            raise ValueError("needs a model: either `model` or a `train` section")
        return section

    @field_validator("prune")
    @classmethod
    def _has_a_plan(cls, section: PruneOptions, info: ValidationInfo) -> PruneOptions:
        if info.data.get("plan", "invalid") is None:
            raise ValueError("needs a section `plan`")
        return section

    @field_validator("finetune", "evaluate")
    @classmethod
    def _has_what_it_follows(cls, section: Any, info: ValidationInfo) -> Any:
        needed = {"finetune": "plan", "evaluate": "sample"}[info.field_name or ""]
        if section is not None and info.data.get(needed, "invalid") is None:
            raise ValueError(f"needs a section `{needed}`")
        return section

    @field_validator("evaluate")
    @classmethod
    def _has_a_reference(cls, section: EvaluateOptions | None, info: ValidationInfo) -> EvaluateOptions | None:
        known = info.data.get("data", "invalid") or info.data.get("reference", "invalid")
        of_sets = [m for m in section.metrics if m not in PAIRED_METRICS + LONE_METRICS] if section else []
        if of_sets and known is None:
            raise ValueError(f"{of_sets[0]} compares with the data: give data for the whole recipe, or a reference")
        return section

    def variant(self, name: str) -> tuple[PlanOptions, PruneOptions]:
        """How one of the compared criteria plans and prunes; options of another criterion fall back to defaults."""
        plan = self.section("plan")
        mine = plan.model_dump(include=plan.model_fields_set - {"criterion"}) | {"data": plan.data}
        if name != "diff-pruning":
            mine = {k: v for k, v in mine.items() if k not in OWN_OF_DIFF_PRUNING}
        criterion = "random" if name == "scratch" else name
        reinit = self.prune.reinit or name == "scratch"
        return PlanOptions(**{**mine, "criterion": criterion}), self.pruning.model_copy(update={"reinit": reinit})

    @property
    def pruning(self) -> PruneOptions:
        """The options of `prune`; those of the run that its section leaves out are those of `plan`."""
        plan = PlanOptions() if self.plan is None else self.plan
        run = {*RunOptions.model_fields} & plan.model_fields_set - self.prune.model_fields_set
        return self.prune.model_copy(update={name: getattr(plan, name) for name in run})

    @property
    def judged_by(self) -> str | None:
        """What sets of images are compared with."""
        return self.reference or self.data

    def metrics(self, kind: MetricKind) -> tuple[Any, ...]:
        """The metrics of one kind, in the recipe's order."""
        listed = {"pairs": PAIRED_METRICS, "statistics": MOMENT_METRICS, "alone": LONE_METRICS}
        kinds = {metric: name for name, metrics in listed.items() for metric in metrics}
        chosen = self.evaluate.metrics if self.evaluate is not None else ()
        return tuple(metric for metric in chosen if kinds.get(metric, "sets") == kind)

    def section(self, name: str) -> Any:
        """A stage's options, with the recipe's data where the stage names none."""
        options = getattr(self, name)
        return options.model_copy(update={"data": options.data or self.data})


def read_recipe(source: str | os.PathLike[str], changes: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe; raises OptionError that lists all its mistakes at once.

    source: a YAML file, or the name of a shipped recipe such as `cifar10`.
    changes: `section.option=value` or `option=value`, with values in YAML; they replace the values of the file.
    """
    path = find_recipe(source)
    try:
        value = yaml.safe_load(path.read_text())
    except OSError as error:
        raise OptionError(f"cannot read the recipe {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise OptionError(f"{path} is not YAML: {error}") from error
    if not isinstance(value, dict):
        raise OptionError(f"{path} holds a {type(value).__name__}, expected sections such as plan and sample")
    for change in changes:
        _change(value, change)
    return parse_options(Recipe, value, what=f"{path}")


def _change(recipe: dict[str, Any], change: str) -> None:
    name, equals, text = change.partition("=")
    section, dot, option = name.strip().partition(".")
    if not equals or not section or (dot and not option):
        raise OptionError(f"--set: got {change!r}, expected section.option=value, such as finetune.steps=100")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise OptionError(f"--set: the value of {change!r} is not YAML: {error}") from error
    if not dot:
        recipe[section] = value
    elif isinstance(recipe.get(section), dict):
        recipe[section][option] = value
    else:
        recipe[section] = {option: value}
