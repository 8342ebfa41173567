"""Options of `plan` and `inspect`."""

from typing import Any, ClassVar

from pydantic import Field

from diffprune.options.budget_options import BudgetOptions
from diffprune.options.option_set import Groups, PrecisionOptions
from diffprune.options.run_options import RunOptions
from diffprune.options.scoring_options import UNCALIBRATED_CRITERIA, ScoringOptions

OF_RUN = frozenset({*RunOptions.model_fields, *ScoringOptions.neutral})
"""Options of the run, which no plan records."""


class PlanOptions(BudgetOptions, ScoringOptions):
    """Options of `plan`: the scores, and the budget that turns them into a plan."""

    @property
    def is_calibrated(self) -> bool:
        """Whether scores need calibration images: of the criterion, or of blocks."""
        of_blocks = "blocks" in (self.kinds or ()) and self.criterion != "random"
        return of_blocks or self.criterion not in UNCALIBRATED_CRITERIA

    def choice(self) -> dict[str, Any]:
        """Return the options without those of the run, as JSON types, for `Plan.options`."""
        return {name: value for name, value in self.resolved().items() if name not in OF_RUN}


class InspectOptions(PrecisionOptions):
    """Options of `inspect`."""

    groups: ClassVar[Groups] = {"output": ("latency",)}

    latency: bool = Field(default=True, description="time a forward pass; needs weights")
