"""Options of a run of `plan` or `prune`: device, precision and memory. No plan records them."""

from typing import ClassVar, Literal

from pydantic import Field

from diffprune.options.option_set import Groups, PrecisionOptions


class RunOptions(PrecisionOptions):
    """Device, precision and memory of one run."""

    neutral = PrecisionOptions.neutral | {"batch_size", "offload"}

    groups: ClassVar[Groups] = {"device and memory": ("device", "batch_size", "mixed_precision", "offload")}

    batch_size: int = Field(
        default=32, ge=1, description=("images per forward and backward pass\nit affects memory only")
    )
    offload: Literal["none", "cpu"] = Field(
        default="none",
        description=("cpu: hold weights in CPU memory, move them by layer\ncombine with --gradient-checkpointing"),
    )
