"""Options of `analyze stages` and `analyze sensitivity`."""

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from diffprune.options.budget_options import KindOptions
from diffprune.options.option_set import Groups
from diffprune.options.plan_options import PlanOptions
from diffprune.options.scoring_options import Criterion, ScoringOptions


class StagesOptions(PlanOptions):
    """Options of `analyze stages`: one pruned model per stage of timesteps."""

    groups: ClassVar[Groups] = {"analysis": ("num_stages", "num", "steps")}

    threshold: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description=("diff-pruning: stop at this relative loss\n0 scores every timestep of a stage, as published"),
    )
    num_stages: int = Field(default=10, ge=2, description="number of equal stages of timesteps")
    num: int = Field(default=64, ge=1, description="images per model")
    steps: int = Field(default=50, ge=1, description="DDIM steps per image")


class SensitivityOptions(KindOptions, ScoringOptions):
    """Options of `analyze sensitivity`: the error of the output when one part is pruned."""

    groups: ClassVar[Groups] = {"analysis": ("by", "ratios", "num_timesteps")}

    # narrower than for scores, which choose a criterion by the weights: here it is never left open
    criterion: Criterion = Field(default="magnitude", description="criterion that scores units")
    by: Literal["group", "block"] = Field(default="block", description="prune one block or one group at a time")
    ratios: tuple[float, ...] = Field(
        default=(0.1, 0.3, 0.5, 0.7), min_length=1, description="shares of units to remove"
    )
    num_timesteps: int = Field(default=10, ge=1, description="number of evenly spaced timesteps for the error")

    @field_validator("ratios")
    @classmethod
    def _are_shares(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        wrong = [ratio for ratio in value if not 0 < ratio < 1]
        if wrong:
            raise ValueError(f"got {wrong[0]:g}, expected numbers between 0 and 1, such as 0.3 0.5")
        return tuple(sorted(set(value)))
