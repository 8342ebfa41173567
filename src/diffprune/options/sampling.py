"""Options of `sample`."""

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from diffprune.options.base import ComputeOptions

Sampler = Literal["ddim", "ddpm"]
Grid = Literal["uniform", "quad"]


class SampleOptions(ComputeOptions):
    """Drawing images."""

    num: int = Field(default=64, ge=1, description="number of images")
    steps: int = Field(default=100, ge=1, description="members of the timestep grid, before repeats are dropped")
    sampler: Sampler = Field(default="ddim", description="DDIM or ancestral DDPM steps")
    grid: Grid = Field(default="uniform", description="spacing of the timesteps")
    eta: float = Field(default=0.0, ge=0, le=1, description="DDIM: share of the ancestral noise (0 is deterministic)")
    batch_size: int = Field(default=64, ge=1, description="images per forward pass (the images do not depend on it)")

    @field_validator("eta")
    @classmethod
    def _belongs_to_ddim(cls, value: float, info: ValidationInfo) -> float:
        if info.data.get("sampler") == "ddpm":
            raise ValueError("belongs to the ddim sampler, not to ddpm; leave it out")
        return value
