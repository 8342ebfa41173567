"""Options of `plan`, `prune` and `inspect`."""

from typing import Annotated, Literal, TypeVar

from pydantic import Field, PlainValidator, ValidationInfo, field_validator

from diffprune.options.budget_options import BudgetOptions
from diffprune.options.image_options import ImageOptions
from diffprune.options.option_set import ComputeOptions, Options, PrecisionOptions, number_or_auto
from diffprune.options.prompt_options import GenerationOptions

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

OF_CALIBRATION = frozenset(
    {
        *GenerationOptions.model_fields, *ImageOptions.model_fields, *ComputeOptions.model_fields,
        "data", "num_calibration_images", "num_noises", "batch_size", "offload",
    }
)  # fmt: skip
"""Options of `plan` that say which images a model is scored on, and how they are passed through it."""

T = TypeVar("T")


class PlanOptions(BudgetOptions, GenerationOptions, ImageOptions, PrecisionOptions, ComputeOptions):
    """Which units to keep: scores of a criterion, turned into a plan by a budget."""

    neutral = ComputeOptions.neutral | {"gradient_checkpointing", "offload"}

    criterion: Criterion | None = Field(
        default=None,
        description="how units are scored (default: diff-pruning; random for an architecture without weights)",
    )
    data: str | None = Field(
        default=None,
        description=CALIBRATION_DATA,
    )
    num_calibration_images: int = Field(default=128, ge=1, description="images in the calibration batch")
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
    num_noises: int = Field(default=1, ge=1, description="noises drawn for each calibration image")
    power: Literal[1, 2] = Field(default=1, description="diff-pruning: sum of |w*G| (1) or of (w*G)^2 (2)")
    norms: bool = Field(default=False, description="diff-pruning: add |w*G| of the norm weights")
    block_criterion: Literal["bypass", "cosine"] = Field(
        default="bypass",
        description="kinds with blocks: error of the output without the block, or what it turns its input by",
    )
    block_timesteps: int = Field(
        default=10, ge=1, description="kinds with blocks: evenly spaced timesteps that blocks are scored at"
    )
    batch_size: int = Field(
        default=32, ge=1, description="images per backward pass (memory only; the scores stay the same)"
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="keep no activations inside blocks while scoring and compute them anew: less memory, more time",
    )

    offload: Literal["none", "cpu"] = Field(
        default="none",
        description="cpu: weights and sums stay in main memory while units are scored and layers are compensated, and "
        "weights come to the device layer by layer; give gradient_checkpointing too",
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


class PruneOptions(Options):
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


class InspectOptions(PrecisionOptions):
    """Looking at a model."""

    latency: bool = Field(default=True, description="time a forward pass (models with weights only)")
