"""Recipes: the options of a whole road in one YAML file. Imports no torch."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, model_validator

from diffprune.errors import OptionError
from diffprune.options import (
    ClassifierOptions,
    EvaluateOptions,
    FinetuneOptions,
    Options,
    PlanOptions,
    PruneOptions,
    SampleOptions,
    TrainOptions,
    parse_options,
)

DEMO = Path(__file__).parent / "assets" / "demo.yaml"


class RecoverOptions(FinetuneOptions):
    """Recovery in a recipe, where the teacher can only be the original."""

    distill: bool = Field(default=True, description="distil the original's output")


class Recipe(Options):
    """One road: a model (given or trained), then whichever stages have a section, in this order."""

    name: str = Field(description="what the experiment is called")
    model: str | None = Field(default=None, description="MODEL to start from; left out where `train` makes it")
    data: str | None = Field(default=None, description="DATA of every stage that does not name its own")
    classifier: ClassifierOptions | None = Field(default=None, description="train the digit classifier")
    train: TrainOptions | None = Field(default=None, description="train the model from scratch")
    plan: PlanOptions | None = Field(default=None, description="score units and choose which stay")
    prune: PruneOptions = Field(default=PruneOptions(), description="carry out the plan")
    finetune: RecoverOptions | None = Field(default=None, description="recover the pruned model")
    sample: SampleOptions | None = Field(default=None, description="draw images of every model, from the same noise")
    evaluate: EvaluateOptions | None = Field(
        default=None, description="pairs against the original's images, sets against the data"
    )

    @model_validator(mode="after")
    def _one_road(self) -> "Recipe":
        if self.plan is not None and (self.model is None) == (self.train is None):
            raise ValueError("a recipe with a plan needs either a model or a train section, not both")
        needs_images = [name for name in ("train", "plan", "finetune") if self._lacks_data(name)]
        if needs_images:
            raise ValueError(f"data: missing; {', '.join(needs_images)} need images")
        for name, needed in (("finetune", "plan"), ("evaluate", "sample")):
            if getattr(self, name) is not None and getattr(self, needed) is None:
                raise ValueError(f"{name} needs a section {needed}")
        return self

    def _lacks_data(self, name: str) -> bool:
        section = getattr(self, name)
        if section is None or self.data or section.data:
            return False
        return name != "plan" or section.criterion not in ("random", "magnitude")

    def section(self, name: str) -> Any:
        """A stage's options, with the recipe's data where the stage names none."""
        options = getattr(self, name)
        return options.model_copy(update={"data": options.data or self.data})


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe; raises OptionError that lists all its mistakes at once."""
    try:
        value = yaml.safe_load(path.read_text())
    except OSError as error:
        raise OptionError(f"cannot read the recipe {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise OptionError(f"{path} is not YAML: {error}") from error
    if not isinstance(value, dict):
        raise OptionError(f"{path} holds a {type(value).__name__}, expected sections such as plan and sample")
    return parse_options(Recipe, value, what=f"{path}")
