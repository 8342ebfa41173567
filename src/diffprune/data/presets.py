"""Preprocessing of images by preset: crop, resize, filter. Imports no torch."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast

from PIL import Image

from diffprune.errors import DataError, OptionError
from diffprune.options import ImageOptions, InceptionOptions
from diffprune.options.image_options import SQUARE, WHOLE, Filter, Fit, crop_box

_FILTERS: Mapping[Filter, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}


@dataclass(frozen=True)
class Box:
    """Rows top to bottom and columns left to right, in pixels, ends excluded.

    image_size: (height, width) that an image must have; None for any image that is large enough.
    """

    top: int
    bottom: int
    left: int
    right: int
    image_size: tuple[int, int] | None = None


Crop = Literal["square"] | Box | None


@dataclass(frozen=True)
class Preprocessing:
    """Crop, then resize to `size` (height, width) in pixels.

    crop: None for the whole image. fit: `shorter` resizes the shorter side and center-crops, as torchvision's Resize
    and CenterCrop; `exact` stretches; `halving` first halves by area while the image is at least twice too large, as
    in the preprocessing of Dhariwal and Nichol 2021. filter: of the resize, antialiased as in PIL.
    An image of this size is not resampled, and it is not cropped if the crop does not fit into it.
    """

    size: tuple[int, int]
    crop: Crop = None
    fit: Fit = "shorter"
    filter: Filter = "bilinear"

    def __call__(self, image: Image.Image, what: str = "an image") -> Image.Image:
        """Return the image after crop and resize; raises DataError that names `what` if the crop does not fit."""
        image = _cropped(image, self, what)
        if image.size == (self.size[1], self.size[0]):
            return image
        return _FITS[self.fit](image, self.size, _FILTERS[self.filter])

    def resolved(self) -> dict[str, Any]:
        """Return all settings as JSON types, for `run.json`."""
        settings: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return settings

    def __str__(self) -> str:
        """Return text for `read_preprocessing`: 64x64, crop 57:185,25:153 of 218x178, shorter, bilinear."""
        return f"{_shown(self.size)}, crop {_crop_text(self.crop)}, {self.fit}, {self.filter}"


PRESETS: Mapping[str, Preprocessing] = {
    "cifar10": Preprocessing((32, 32)),
    "celeba64": Preprocessing((64, 64), crop=Box(57, 185, 25, 153, image_size=(218, 178))),
    "lsun256": Preprocessing((256, 256)),
    "imagenet256": Preprocessing((256, 256), fit="halving", filter="bicubic"),
}
"""Preprocessing of published models: Song et al. 2021 (DDIM) and, for ImageNet, Dhariwal and Nichol 2021 (ADM)."""


_TEXT = re.compile(r"(\d+)x(\d+), crop (\S+?)(?: of (\d+)x(\d+))?, (shorter|exact|halving), (\w+)")


def read_preprocessing(text: str) -> Preprocessing:
    """Parse the text that `str` of a preprocessing returns; raises ValueError for anything else."""
    match = _TEXT.fullmatch(text)
    if match is None or match[7] not in _FILTERS:
        raise ValueError(f"{text!r} is not a preprocessing that this version supports")
    crop = _crop(match[3])
    if isinstance(crop, Box) and match[4]:
        crop = replace(crop, image_size=(int(match[4]), int(match[5])))
    return Preprocessing((int(match[1]), int(match[2])), crop, cast(Fit, match[6]), cast(Filter, match[7]))


def preprocessing_of(options: ImageOptions | InceptionOptions, size: tuple[int, int] | None = None) -> Preprocessing:
    """Return the preset with the changes of the options.

    size: (height, width) of the model's images; None if there is no model. Raises OptionError if the result has
    another size, or none.
    """
    preset = None if options.preset is None else PRESETS.get(options.preset)
    chosen = (options.size, options.size) if options.size else preset.size if preset else size
    if chosen is None:
        raise OptionError(f"size: missing. Preset {options.preset!r} takes the size of a model, and there is none")
    if size is not None and chosen != size:
        name = "size" if options.size else "preset"
        raise OptionError(
            f"{name}: {options.size or options.preset} makes images of {_shown(chosen)} pixels, the model has "
            f"{_shown(size)}. Give the preset or the size of this model"
        )
    base = preset or Preprocessing(chosen)
    crop = base.crop if options.crop is None else _crop(options.crop)
    return Preprocessing(chosen, crop, options.fit or base.fit, options.filter or base.filter)


def _crop(text: str) -> Crop:
    if text == WHOLE:
        return None
    return "square" if text == SQUARE else Box(*crop_box(text))


def _crop_text(crop: Crop) -> str:
    if not isinstance(crop, Box):
        return crop or WHOLE
    of = f" of {_shown(crop.image_size)}" if crop.image_size else ""
    return f"{crop.top}:{crop.bottom},{crop.left}:{crop.right}{of}"


def _cropped(image: Image.Image, by: Preprocessing, what: str) -> Image.Image:
    crop, here = by.crop, (image.height, image.width)
    if crop is None:
        return image
    if crop == "square":
        return _centre(image, (min(here), min(here)))
    fits = here == (crop.image_size or here) and crop.bottom <= image.height and crop.right <= image.width
    if not fits and here == by.size:
        return image
    if not fits:
        expected = f"images of {_shown(crop.image_size)}" if crop.image_size else "larger images"
        raise DataError(
            f"{what} has {_shown(here)} pixels. Rows {crop.top}:{crop.bottom} and columns {crop.left}:{crop.right} "
            f"are cropped from {expected}: choose another preset or crop"
        )
    return image.crop((crop.left, crop.top, crop.right, crop.bottom))


def _shorter(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    height, width = size
    if height * image.width >= width * image.height:
        resized = (max(width, image.width * height // image.height), height)
    else:
        resized = (width, max(height, image.height * width // image.width))
    return _centre(image.resize(resized, resample), size)


def _exact(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    return image.resize((size[1], size[0]), resample)


def _halving(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    height, width = size
    while image.height >= 2 * height and image.width >= 2 * width:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(height / image.height, width / image.width)
    resized = image.resize((round(image.width * scale), round(image.height * scale)), resample)
    left, top = (resized.width - width) // 2, (resized.height - height) // 2
    return resized.crop((left, top, left + width, top + height))


_FITS: Mapping[Fit, Callable[[Image.Image, tuple[int, int], Image.Resampling], Image.Image]] = {
    "shorter": _shorter,
    "exact": _exact,
    "halving": _halving,
}


def _centre(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return the center of an image; half pixels are rounded to even, as in torchvision's CenterCrop."""
    top, left = round((image.height - size[0]) / 2), round((image.width - size[1]) / 2)
    return image.crop((left, top, left + size[1], top + size[0]))


def _shown(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
