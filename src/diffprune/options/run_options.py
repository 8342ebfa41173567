"""Options of a run of `plan` or `prune`: where and how it computes. No plan records them."""

from typing import Literal

from pydantic import Field

from diffprune.options.option_set import PrecisionOptions


class RunOptions(PrecisionOptions):
    """Device, precision and memory of one run."""

    neutral = PrecisionOptions.neutral | {"batch_size", "offload"}

    batch_size: int = Field(
        default=32, ge=1, description="images per forward and backward pass (memory only; scores do not depend on it)"
    )
    offload: Literal["none", "cpu"] = Field(
        default="none",
        description="cpu: keep weights and sums in main memory while units are scored and layers are compensated, and "
        "copy weights to the device layer by layer; combine with gradient_checkpointing",
    )
