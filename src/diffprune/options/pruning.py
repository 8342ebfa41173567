"""Options of `plan`, `prune` and `inspect`."""

from typing import Literal, TypeVar

from pydantic import Field, ValidationInfo, field_validator

from diffprune.options.base import ComputeOptions, Options

Criterion = Literal["random", "magnitude", "taylor", "diff-pruning"]

CALIBRATED_CRITERIA = ("taylor", "diff-pruning")
"""Criteria that look at images (and at weights); the others need weights alone or nothing."""

T = TypeVar("T")


class PlanOptions(ComputeOptions):
    """Which units to keep: scores of a criterion, turned into a plan by a budget."""

    ratio: float = Field(default=0.3, gt=0, lt=1, description="share of each group's units to remove, between 0 and 1")
    criterion: Criterion | None = Field(
        default=None,
        description="how units are scored (default: diff-pruning; random for an architecture without weights)",
    )
    data: str | None = Field(
        default=None, description="images to calibrate on: a folder, a parquet file, a dataset id or `digits`"
    )
    num_calibration_images: int = Field(default=128, ge=1, description="images in the calibration batch")
    threshold: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="diff-pruning: stop at the first timestep with loss / largest loss below this",
    )
    timestep_stride: int = Field(
        default=1, ge=1, description="score every n-th timestep only (1 is the published pass)"
    )
    power: Literal[1, 2] = Field(default=1, description="diff-pruning: sum of |w*G| (1) or of (w*G)^2 (2)")
    norms: bool = Field(default=False, description="diff-pruning: add |w*G| of the norm weights")
    batch_size: int = Field(
        default=128, ge=1, description="images per backward pass (memory only; the scores stay the same)"
    )

    @field_validator("threshold", "power", "norms")
    @classmethod
    def _belongs_to_diff_pruning(cls, value: T, info: ValidationInfo) -> T:
        if info.data.get("criterion") not in (None, "diff-pruning"):
            raise ValueError(f"belongs to diff-pruning, not to criterion {info.data['criterion']!r}; leave it out")
        return value


class PruneOptions(Options):
    """How a plan is carried out."""

    reinit: bool = Field(
        default=False, description="fresh weights in the pruned architecture (the scratch-training baseline)"
    )
    seed: int = Field(default=0, ge=0, description="seed of everything random in this stage, such as fresh weights")


class InspectOptions(Options):
    """Looking at a model."""

    latency: bool = Field(default=True, description="time a forward pass (models with weights only)")
    device: str = Field(default="auto", description="torch device; auto takes a GPU where there is one")
