"""Options of `prune`."""

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from diffprune.options.run_options import RunOptions
from diffprune.options.scoring_options import CALIBRATION_DATA


class PruneOptions(RunOptions):
    """How a plan is carried out."""

    data: str | None = Field(default=None, description=CALIBRATION_DATA)
    compensate: bool = Field(
        default=True,
        description="put what the removed units did into those that stay, layer by layer, by least squares on "
        "calibration images (without images, such as after criterion magnitude, the weights are kept as they are)",
    )
    num_compensation_images: int | None = Field(
        default=None,
        ge=1,
        description="noised images that layers are fitted on, all at once; a quarter as many more are held out "
        "(default: 256; fewer, down to 8, where an image or latent has more than 16,384 values)",
    )
    compensation_weighting: Literal["uniform", "snr", "log"] = Field(
        default="uniform",
        description="what timesteps count in compensation: all alike, snr (the least noisy less) or log (the noisiest "
        "most)",
    )
    reinit: bool = Field(
        default=False, description="fresh weights in the pruned architecture (the scratch-training baseline)"
    )
    rescale_queries: bool = Field(
        default=False,
        description="where heads grow narrower: multiply queries by sqrt(new / old width), so that attention weighs as "
        "if the missing ones were zero (off: the published rule)",
    )
    seed: int = Field(default=0, ge=0, description="seed of everything random in this stage, such as fresh weights")

    @field_validator("rescale_queries")
    @classmethod
    def _not_beside_reinit(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("reinit"):
            raise ValueError("fresh weights have nothing to keep; leave reinit or rescale_queries out")
        return value
