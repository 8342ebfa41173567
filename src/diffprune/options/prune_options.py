"""Options of `prune`."""

from typing import ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from diffprune.options.in_memory import DataSource
from diffprune.options.option_set import Groups
from diffprune.options.run_options import RunOptions
from diffprune.options.scoring_options import DATA_NOTE


class PruneOptions(RunOptions):
    """Options of `prune`, without those of planning."""

    groups: ClassVar[Groups] = {
        "data": ("data",),
        "compensation": (
            "compensate", "num_compensation_images", "compensation_weighting", "rescale_queries", "reinit",
        ),
        "output": ("seed",),
    }  # fmt: skip

    data: DataSource | None = Field(
        default=None, description=f"calibration images (default: those of the plan, else none)\n{DATA_NOTE}"
    )
    compensate: bool = Field(
        default=True,
        description=(
            "refit the kept weights by least squares on data\nwithout calibration images the weights are unchanged"
        ),
    )
    num_compensation_images: int | None = Field(
        default=None,
        ge=1,
        description=(
            "noised images to fit on (default: 256)\n"
            "8 to 256 where an image has more than 16,384 values; a quarter more are held out"
        ),
    )
    compensation_weighting: Literal["uniform", "snr", "log"] = Field(
        default="uniform",
        description=(
            "weights of the timesteps in the fit\n"
            "uniform; snr: less weight for the least noisy; log: most weight for the noisiest"
        ),
    )
    reinit: bool = Field(default=False, description="new random weights, the train-from-scratch baseline")
    rescale_queries: bool = Field(
        default=False,
        description=(
            "scale queries by sqrt(new / old head width)\n"
            "attention then weighs as if removed dimensions were zero; off: as published"
        ),
    )
    seed: int = Field(default=0, ge=0, description="seed of all random numbers")

    @field_validator("rescale_queries")
    @classmethod
    def _not_with_reinit(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("reinit"):
            raise ValueError("has no effect on the new weights of reinit; remove reinit or rescale_queries")
        return value
