"""Options of the analyses."""

from typing import Literal

from pydantic import Field, field_validator

from diffprune.options.budget_options import KindOptions
from diffprune.options.plan_options import PlanOptions
from diffprune.options.scoring_options import Criterion, ScoringOptions


class StagesOptions(PlanOptions):
    """Which timesteps make the best scores: one pruned model per stage of timesteps."""

    threshold: float = Field(
        default=0.0, ge=0, lt=1, description="diff-pruning: 0 scores every timestep of a stage, as published"
    )
    num_stages: int = Field(default=10, ge=2, description="equal stages that the timesteps are divided into")
    num: int = Field(default=64, ge=1, description="images drawn of every model")
    steps: int = Field(default=50, ge=1, description="DDIM steps of each image")


class SensitivityOptions(KindOptions, ScoringOptions):
    """How much the output suffers when one part alone is pruned."""

    criterion: Criterion | None = Field(default="magnitude", description="how units are scored")
    by: Literal["group", "block"] = Field(
        default="block", description="prune one group at a time, or all groups of one block"
    )
    ratios: tuple[float, ...] = Field(
        default=(0.1, 0.3, 0.5, 0.7), min_length=1, description="shares of units to remove from the part"
    )
    num_timesteps: int = Field(default=10, ge=1, description="evenly spaced timesteps that the error is measured at")

    @field_validator("ratios")
    @classmethod
    def _are_shares(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        wrong = [ratio for ratio in value if not 0 < ratio < 1]
        if wrong:
            raise ValueError(f"got {wrong[0]:g}, expected numbers between 0 and 1")
        return tuple(sorted(set(value)))
