"""Options of scores: the calibration images, and the criterion that scores units."""

from typing import Annotated, ClassVar, Literal, TypeVar

from pydantic import Field, PlainValidator, ValidationInfo, field_validator

from diffprune.options.image_options import ImageOptions
from diffprune.options.in_memory import DataSource
from diffprune.options.option_set import ComputeOptions, Groups, number_or_auto
from diffprune.options.prompt_options import GenerationOptions
from diffprune.options.run_options import RunOptions

Criterion = Literal[
    "random", "magnitude", "taylor", "diff-pruning", "first-order", "second-order", "absolute", "fisher", "gn-fisher",
    "obs",
]  # fmt: skip

UNCALIBRATED_CRITERIA = ("random", "magnitude")
"""Criteria that need no images."""

DATA_NOTE = (
    "a folder, parquet file, dataset id, digits, or generated (by the model itself); with captions for "
    "text-conditioned models; criteria random and magnitude need no images"
)
"""Details of the option `data`."""

DIFF_PRUNING_OPTIONS = ("threshold", "power", "norms")
"""Options that only criterion diff-pruning has."""

T = TypeVar("T")


class CalibrationOptions(GenerationOptions, ImageOptions, RunOptions, ComputeOptions):
    """Options of the images or latents for scores and compensation."""

    groups: ClassVar[Groups] = {"data": ("data", "num_calibration_images", "num_noises")}

    data: DataSource | None = Field(default=None, description=f"calibration images (default: none)\n{DATA_NOTE}")
    num_calibration_images: int = Field(default=128, ge=1, description="number of calibration images")
    num_noises: int = Field(default=1, ge=1, description="noise samples per calibration image")


class ScoringOptions(CalibrationOptions):
    """Options of the criterion."""

    neutral = RunOptions.neutral | {"gradient_checkpointing"}

    groups: ClassVar[Groups] = {
        "how to score": (
            "criterion", "threshold", "timestep_stride", "first_timestep", "last_timestep", "power", "norms",
            "block_criterion", "block_timesteps",
        ),
        "device and memory": ("device", "batch_size", "mixed_precision", "offload", "gradient_checkpointing"),
    }  # fmt: skip

    criterion: Criterion | None = Field(
        default=None,
        description=(
            "criterion that scores units (default: diff-pruning)\n"
            "random, magnitude, taylor, diff-pruning, first-order, second-order, absolute, fisher, "
            "gn-fisher, obs"
        ),
    )
    threshold: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description=(
            "diff-pruning: stop at this relative loss\n"
            "scoring stops at the first timestep with loss / largest loss below it"
        ),
    )
    timestep_stride: Annotated[int | Literal["auto"], PlainValidator(number_or_auto)] = Field(
        default="auto",
        description=("score every N-th timestep; auto: 100 timesteps\n1: every timestep, as published"),
    )
    first_timestep: int = Field(default=0, ge=0, description="first timestep to score; 0 is the least noisy")
    last_timestep: int | None = Field(default=None, ge=0, description="last timestep to score (default: the noisiest)")
    power: Literal[1, 2] = Field(default=1, description="diff-pruning: sum of |w*G| (1) or of (w*G)^2 (2)")
    norms: bool = Field(default=False, description="diff-pruning: add |w*G| of norm weights")
    block_criterion: Literal["bypass", "cosine"] = Field(
        default="bypass",
        description=(
            "blocks: criterion that scores them\n"
            "bypass: error of the output without the block; cosine: angle between its input and its "
            "output"
        ),
    )
    block_timesteps: int = Field(default=10, ge=1, description="blocks: number of evenly spaced timesteps to score")
    gradient_checkpointing: bool = Field(
        default=False,
        description="recompute activations: less memory, slower",
    )

    @field_validator("last_timestep")
    @classmethod
    def _not_before_the_first(cls, value: int | None, info: ValidationInfo) -> int | None:
        first = info.data.get("first_timestep")
        if value is not None and first is not None and value < first:
            raise ValueError(f"got {value}, expected at least first_timestep ({first})")
        return value

    @field_validator(*DIFF_PRUNING_OPTIONS)
    @classmethod
    def _belongs_to_diff_pruning(cls, value: T, info: ValidationInfo) -> T:
        if info.data.get("criterion") not in (None, "diff-pruning"):
            raise ValueError(f"belongs to diff-pruning, not to criterion {info.data['criterion']!r}; remove it")
        return value
