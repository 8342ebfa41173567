"""Options of `plan` and `inspect`."""

from typing import Any, ClassVar

from pydantic import Field

from diffprune.options.budget_options import BudgetOptions
from diffprune.options.option_set import Groups, PrecisionOptions
from diffprune.options.run_options import RunOptions
from diffprune.options.scoring_options import ScoringOptions

OF_RUN = frozenset({*RunOptions.model_fields, *ScoringOptions.neutral})
"""Options that say where and how a plan was computed, not what was chosen."""


class PlanOptions(BudgetOptions, ScoringOptions):
    """Which units to keep: scores of a criterion, turned into a plan by a budget."""

    def choice(self) -> dict[str, Any]:
        """What was chosen, as JSON types: all options without those of the run, for `Plan.options`."""
        return {name: value for name, value in self.resolved().items() if name not in OF_RUN}


class InspectOptions(PrecisionOptions):
    """Looking at a model."""

    groups: ClassVar[Groups] = {"output": ("latency",)}

    latency: bool = Field(default=True, description="time a forward pass; needs weights")
