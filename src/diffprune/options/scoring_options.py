"""Options of scores: the calibration set, and the criterion that scores units on it."""

from typing import Annotated, Literal, TypeVar

from pydantic import Field, PlainValidator, ValidationInfo, field_validator

from diffprune.options.image_options import ImageOptions
from diffprune.options.option_set import ComputeOptions, number_or_auto
from diffprune.options.prompt_options import GenerationOptions
from diffprune.options.run_options import RunOptions

Criterion = Literal[
    "random", "magnitude", "taylor", "diff-pruning", "first-order", "second-order", "absolute", "fisher", "gn-fisher",
    "obs",
]  # fmt: skip

UNCALIBRATED_CRITERIA = ("random", "magnitude")
"""Criteria that need no images."""

CALIBRATION_DATA = (
    "images to calibrate on: a folder, a parquet file, a dataset id, `digits`, or `generated`: drawn by the model "
    "itself; for text-conditioned models with captions, as in finetune (where a plan is carried out: default those it "
    "was made with)"
)

OWN_OF_DIFF_PRUNING = ("threshold", "power", "norms")
"""Options that no other criterion knows."""

T = TypeVar("T")


class CalibrationOptions(GenerationOptions, ImageOptions, RunOptions, ComputeOptions):
    """The images or latents that a model is scored and compensated on."""

    data: str | None = Field(default=None, description=CALIBRATION_DATA)
    num_calibration_images: int = Field(default=128, ge=1, description="images in the calibration batch")
    num_noises: int = Field(default=1, ge=1, description="noises drawn for each calibration image")


class ScoringOptions(CalibrationOptions):
    """How units are scored."""

    neutral = RunOptions.neutral | {"gradient_checkpointing"}

    criterion: Criterion | None = Field(
        default=None,
        description="how units are scored (default: diff-pruning; random for an architecture without weights)",
    )
    threshold: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="diff-pruning: stop at the first timestep with loss / largest loss below this",
    )
    timestep_stride: Annotated[int | Literal["auto"], PlainValidator(number_or_auto)] = Field(
        default="auto",
        description="score every n-th timestep only; auto: a hundred of them, evenly spaced (1 is the published pass)",
    )
    first_timestep: int = Field(default=0, ge=0, description="first timestep to score, 0 being the least noisy")
    last_timestep: int | None = Field(default=None, ge=0, description="last timestep to score (default: the noisiest)")
    power: Literal[1, 2] = Field(default=1, description="diff-pruning: sum of |w*G| (1) or of (w*G)^2 (2)")
    norms: bool = Field(default=False, description="diff-pruning: add |w*G| of the norm weights")
    block_criterion: Literal["bypass", "cosine"] = Field(
        default="bypass",
        description="kinds with blocks: error of the output without the block, or what it turns its input by",
    )
    block_timesteps: int = Field(
        default=10, ge=1, description="kinds with blocks: evenly spaced timesteps that blocks are scored at"
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="keep no activations inside blocks while scoring and compute them anew: less memory, more time",
    )

    @field_validator("last_timestep")
    @classmethod
    def _not_before_the_first(cls, value: int | None, info: ValidationInfo) -> int | None:
        first = info.data.get("first_timestep")
        if value is not None and first is not None and value < first:
            raise ValueError(f"got {value}, expected at least first_timestep, {first}")
        return value

    @field_validator(*OWN_OF_DIFF_PRUNING)
    @classmethod
    def _belongs_to_diff_pruning(cls, value: T, info: ValidationInfo) -> T:
        if info.data.get("criterion") not in (None, "diff-pruning"):
            raise ValueError(f"belongs to diff-pruning, not to criterion {info.data['criterion']!r}; leave it out")
        return value
