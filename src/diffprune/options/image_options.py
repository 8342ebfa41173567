"""Options of stages that read images: preprocessing, and what to do with unreadable images."""

import re
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from diffprune.options.option_set import Groups, Options

SizedPreset = Literal["cifar10", "celeba64", "lsun256", "imagenet256"]
Preset = Literal["model", SizedPreset]
Fit = Literal["shorter", "exact", "halving"]
Filter = Literal["bilinear", "bicubic", "lanczos", "box"]
OnCorrupt = Literal["fail", "skip"]

WHOLE, SQUARE = "whole", "square"
"""Crops without numbers: the whole image, and the largest centered square."""

_BOX = re.compile(r"(\d+):(\d+),(\d+):(\d+)")


class PreparationOptions(Options):
    """Preprocessing options that replace those of a preset, and what to do with unreadable images."""

    groups: ClassVar[Groups] = {"image preparation": ("crop", "size", "fit", "filter", "on_corrupt")}

    crop: str | None = Field(
        default=None,
        description=(
            "crop before resizing (default: from the preset)\nwhole, square (centered), or pixels TOP:BOTTOM,LEFT:RIGHT"
        ),
    )
    size: int | None = Field(
        default=None, ge=1, description="height and width after resizing (default: from the preset)"
    )
    fit: Fit | None = Field(
        default=None,
        description=(
            "how to resize (default: from the preset)\n"
            "shorter: shorter side, then center crop; exact: stretch; halving: area averaging while "
            "twice too large, then shorter"
        ),
    )
    filter: Filter | None = Field(default=None, description="antialiased resize filter (default: from the preset)")
    on_corrupt: OnCorrupt = Field(default="fail", description="what to do with an unreadable image")

    @field_validator("crop")
    @classmethod
    def _is_a_crop(cls, value: str | None) -> str | None:
        if value not in (None, WHOLE, SQUARE):
            top, bottom, left, right = crop_box(value)
            if top >= bottom or left >= right:
                raise ValueError(f"got {value!r}, an empty crop; expected TOP < BOTTOM and LEFT < RIGHT")
        return value


class ImageOptions(PreparationOptions):
    """Preprocessing for a model: a preset, and the options that replace its own."""

    groups: ClassVar[Groups] = {"image preparation": ("preset",)}

    preset: Preset = Field(
        default="model",
        description=(
            "preprocessing of the images\n"
            "model (resize the shorter side to the model's size, center crop), cifar10, celeba64, "
            "lsun256 or imagenet256"
        ),
    )


def crop_box(text: str) -> tuple[int, int, int, int]:
    """Return (top, bottom, left, right) in pixels of a crop such as 57:185,25:153; raises ValueError otherwise."""
    match = _BOX.fullmatch(text)
    if match is None:
        raise ValueError(f"got {text!r}, expected whole, square or TOP:BOTTOM,LEFT:RIGHT such as 57:185,25:153")
    top, bottom, left, right = map(int, match.groups())
    return top, bottom, left, right
