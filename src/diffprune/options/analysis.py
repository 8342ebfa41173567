"""Options of the analyses."""

from pydantic import Field

from diffprune.options.pruning import PlanOptions


class StagesOptions(PlanOptions):
    """Which timesteps make the best scores: one pruned model per stage of timesteps."""

    threshold: float = Field(
        default=0.0, ge=0, lt=1, description="diff-pruning: 0 scores every timestep of a stage, as published"
    )
    num_stages: int = Field(default=10, ge=2, description="equal stages that the timesteps are divided into")
    num: int = Field(default=64, ge=1, description="images drawn of every model")
    steps: int = Field(default=50, ge=1, description="DDIM steps of each image")
