"""Options of `evaluate`."""

from typing import Literal

from pydantic import Field

from diffprune.options.base import Options

Metric = Literal["ssim", "mse", "frechet_distance"]


class EvaluateOptions(Options):
    """Comparing two sets of images."""

    neutral = frozenset({"device", "batch_size"})

    metrics: tuple[Metric, ...] = Field(
        default=("ssim", "mse"),
        description="ssim and mse compare pairs of one image index; frechet_distance compares sets",
    )
    batch_size: int = Field(default=256, ge=1, description="images per batch")
    device: str = Field(default="auto", description="torch device; auto takes a GPU where there is one")
