"""The recipe: the options of all stages of an experiment in one YAML file. Imports no torch."""

import os
from collections.abc import Sequence
from typing import Any, Literal, get_args

import yaml
from pydantic import Field, ValidationInfo, field_validator, model_validator

from diffprune.errors import OptionError
from diffprune.options import (
    DIFF_PRUNING_OPTIONS,
    LONE_METRICS,
    MOMENT_METRICS,
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
"""What images are compared with: the original model's images, statistics of the reference, the reference, nothing."""


class RecoverOptions(FinetuneOptions):
    """Options of `finetune` in a recipe, where the teacher is the original model."""

    distill: bool = Field(default=True, description="distill the output of the original model")

    @model_validator(mode="after")
    def _no_idle_weight(self) -> "RecoverOptions":
        if not self.distill and "teacher_weight" in self.model_fields_set:
            raise ValueError("teacher_weight has no effect with distill: false; remove one of the two")
        return self


class Recipe(Options):
    """A model, loaded or trained, and the stages that follow: those with a section, in this order."""

    name: str = Field(description="name of the experiment")
    model: str | None = Field(
        default=None, description="MODEL to start from (default: the one that section train makes)"
    )
    data: str | None = Field(default=None, description="DATA of all stages without their own (default: none)")
    reference: str | None = Field(default=None, description="images or statistics for set metrics (default: data)")
    classifier: ClassifierOptions | None = Field(default=None, description="train the digit classifier (default: no)")
    train: TrainOptions | None = Field(default=None, description="train the model from scratch (default: no)")
    compare: tuple[Variant, ...] | None = Field(
        default=None,
        min_length=1,
        description="criteria to compare, instead of the plan's (default: none)\nscratch: random choice, new weights",
    )
    plan: PlanOptions | None = Field(
        default=None, description="score units and choose which to keep (default: no pruning)"
    )
    prune: PruneOptions = Field(default=PruneOptions(), description="prune the model")
    finetune: RecoverOptions | None = Field(default=None, description="recover the pruned model (default: no)")
    sample: SampleOptions | None = Field(
        default=None, description="generate images with all models, from the same noise (default: no)"
    )
    evaluate: EvaluateOptions | None = Field(
        default=None, description="compare pairs with the original's images, sets with the reference (default: no)"
    )

    @field_validator("train", "plan", "finetune")
    @classmethod
    def _has_images(cls, section: Any, info: ValidationInfo) -> Any:
        if section is None or info.data.get("data", "invalid") or section.data:
            return section
        if info.field_name == "plan" and section.criterion in ("random", "magnitude"):
            return section
        raise ValueError("needs images; set data in this section or at the top of the recipe")

    @field_validator("plan")
    @classmethod
    def _has_one_model(cls, section: PlanOptions | None, info: ValidationInfo) -> PlanOptions | None:
        known = {"model", "train"} <= info.data.keys()
        if section is not None and known and (info.data["model"] is None) == (info.data["train"] is None):
            raise ValueError("needs one model; set `model` or a section `train`, not both")
        return section

    @field_validator("sample")
    @classmethod
    def _has_something_to_draw(cls, section: SampleOptions | None, info: ValidationInfo) -> SampleOptions | None:
        known = {"model", "train"} <= info.data.keys()
        if section is not None and known and info.data["model"] is None and info.data["train"] is None:
            raise ValueError("needs a model; set `model` or add a section `train`")
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
            raise ValueError(f"{of_sets[0]} compares with the data; set data or reference at the top of the recipe")
        return section

    def variant(self, name: str) -> tuple[PlanOptions, PruneOptions]:
        """Return the options of plan and prune for one compared criterion; options of other criteria are defaults."""
        plan = self.section("plan")
        chosen = plan.model_dump(include=plan.model_fields_set - {"criterion"}) | {"data": plan.data}
        if name != "diff-pruning":
            chosen = {k: v for k, v in chosen.items() if k not in DIFF_PRUNING_OPTIONS}
        criterion = "random" if name == "scratch" else name
        reinit = self.prune.reinit or name == "scratch"
        return PlanOptions(**{**chosen, "criterion": criterion}), self.pruning.model_copy(update={"reinit": reinit})

    @property
    def pruning(self) -> PruneOptions:
        """Return the options of `prune`; missing options of the run are those of `plan`."""
        plan = PlanOptions() if self.plan is None else self.plan
        run = {*RunOptions.model_fields} & plan.model_fields_set - self.prune.model_fields_set
        return self.prune.model_copy(update={name: getattr(plan, name) for name in run})

    @property
    def judged_by(self) -> str | None:
        """Return the reference of set metrics."""
        return self.reference or self.data

    def metrics(self, kind: MetricKind) -> tuple[Any, ...]:
        """Return the metrics of one kind, in the order of the recipe."""
        listed = {"pairs": PAIRED_METRICS, "statistics": MOMENT_METRICS, "alone": LONE_METRICS}
        kinds = {metric: name for name, metrics in listed.items() for metric in metrics}
        chosen = self.evaluate.metrics if self.evaluate is not None else ()
        return tuple(metric for metric in chosen if kinds.get(metric, "sets") == kind)

    def section(self, name: str) -> Any:
        """Return the options of a stage; missing data is that of the recipe."""
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
