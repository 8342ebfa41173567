"""Options of `data`."""

from typing import Literal

from pydantic import Field

from diffprune.options.image_options import OnCorrupt, SizedPreset
from diffprune.options.option_set import Options


class DataOptions(Options):
    """Making a published data set into images."""

    neutral = frozenset({"num_workers"})

    split: Literal["train", "test"] = Field(default="train", description="part of cifar10 or cifar100")
    resolution: int | None = Field(
        default=None, ge=1, description="ffhq: pixels in the keys of the lmdb, as in 256-00000 (default: 256)"
    )
    format: Literal["folder", "parquet"] = Field(
        default="folder", description="one file per image, or parquet files with an image column"
    )
    preset: SizedPreset | None = Field(
        default=None, description="prepare the images so and store them as PNG (default: as they are)"
    )
    md5: str = Field(
        default="published",
        pattern="^(published|none|[0-9a-f]{32})$",
        description="MD5 that the archive must have: the published one where there is one, another one, or none",
    )
    on_corrupt: OnCorrupt = Field(default="fail", description="at an image that cannot be read")
    num_workers: int = Field(default=0, ge=0, description="processes that decode images")
