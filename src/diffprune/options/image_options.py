"""Options of every stage that reads images: how they are prepared, and what happens to a corrupt one."""

import re
from typing import Literal

from pydantic import Field, field_validator

from diffprune.options.option_set import Options

SizedPreset = Literal["cifar10", "celeba64", "lsun256", "imagenet256"]
Preset = Literal["model", SizedPreset]
Fit = Literal["shorter", "exact", "halving"]
Filter = Literal["bilinear", "bicubic", "lanczos", "box"]
OnCorrupt = Literal["fail", "skip"]

WHOLE, SQUARE = "whole", "square"
"""Crops without numbers: the whole image, and the largest square at its centre."""

_BOX = re.compile(r"(\d+):(\d+),(\d+):(\d+)")


class PreparationOptions(Options):
    """What differs from a preset, and what happens to a corrupt image."""

    crop: str | None = Field(
        default=None,
        description="part taken before the resize: whole, square (at the centre) or rows and columns in pixels such "
        "as 57:185,25:153 (default: the preset's)",
    )
    size: int | None = Field(
        default=None, ge=1, description="height and width of the result in pixels (default: the preset's)"
    )
    fit: Fit | None = Field(
        default=None,
        description="shorter side to the size, then centre crop; exact: stretch; halving: shorter, by area while twice "
        "too large (default: the preset's)",
    )
    filter: Filter | None = Field(default=None, description="antialiased filter of the resize (default: the preset's)")
    on_corrupt: OnCorrupt = Field(default="fail", description="at an image that cannot be read")

    @field_validator("crop")
    @classmethod
    def _is_a_crop(cls, value: str | None) -> str | None:
        if value not in (None, WHOLE, SQUARE):
            top, bottom, left, right = crop_box(value)
            if top >= bottom or left >= right:
                raise ValueError(f"got {value!r}, which is empty; expected the first row and column before the last")
        return value


class ImageOptions(PreparationOptions):
    """How images are prepared for a model; a preset, and what differs from it."""

    preset: Preset = Field(
        default="model", description="how images are prepared; `model`: to the model's size, shorter side, centre crop"
    )


def crop_box(text: str) -> tuple[int, int, int, int]:
    """Top, bottom, left, right in pixels of a crop such as 57:185,25:153; ValueError for anything else."""
    match = _BOX.fullmatch(text)
    if match is None:
        raise ValueError(f"got {text!r}, expected whole, square or TOP:BOTTOM,LEFT:RIGHT such as 57:185,25:153")
    top, bottom, left, right = map(int, match.groups())
    return top, bottom, left, right
