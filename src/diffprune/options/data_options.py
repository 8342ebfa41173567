"""Options of `data`."""

from typing import ClassVar, Literal

from pydantic import Field

from diffprune.options.image_options import OnCorrupt, SizedPreset
from diffprune.options.option_set import Groups, Options


class DataOptions(Options):
    """Options of `data`, which converts a published data set to image files."""

    neutral = frozenset({"num_workers"})

    groups: ClassVar[Groups] = {
        "data set": ("split", "resolution", "md5", "format"),
        "image preparation": ("preset", "on_corrupt"),
        "device and memory": ("num_workers",),
    }  # fmt: skip

    split: Literal["train", "test"] = Field(default="train", description="part of cifar10 or cifar100")
    resolution: int | None = Field(
        default=None,
        ge=1,
        description=("ffhq: resolution in the lmdb keys (default: 256)\n256 reads keys such as 256-00000"),
    )
    format: Literal["folder", "parquet"] = Field(
        default="folder", description="image files, or parquet with an image column"
    )
    preset: SizedPreset | None = Field(default=None, description="preprocessing to apply (default: none, as published)")
    md5: str = Field(
        default="published",
        pattern="^(published|none|[0-9a-f]{32})$",
        description="expected MD5: published, none or 32 hex digits",
    )
    on_corrupt: OnCorrupt = Field(default="fail", description="what to do with an unreadable image")
    num_workers: int = Field(default=0, ge=0, description="processes that decode images")
