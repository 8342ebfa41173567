"""Preprocessing: the presets do what the published models were trained with."""

from typing import get_args

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import v2

from diffprune.data.presets import PRESETS, Box, Preprocessing, preprocessing_of
from diffprune.errors import DataError, OptionError
from diffprune.options import ImageOptions
from diffprune.options.image_options import Preset, SizedPreset
from tests.helpers.archives import noise


def picture(height: int, width: int) -> Image.Image:
    return Image.fromarray(noise(1, height, width)[0])


def same(one: Image.Image, other: Image.Image) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


def test_the_names_in_the_help_are_those_of_the_table() -> None:
    assert set(get_args(SizedPreset)) == set(PRESETS)
    assert set(get_args(Preset)) == {"model", *PRESETS}


@pytest.mark.parametrize("name", PRESETS)
def test_an_image_of_the_right_size_is_not_resampled(name: str) -> None:
    image = picture(*PRESETS[name].size)
    assert same(PRESETS[name](image), image)


@pytest.mark.parametrize(("height", "width"), [(256, 341), (375, 500), (500, 333), (301, 301), (120, 77)])
def test_lsun_images_are_resized_and_cropped_as_by_torchvision(height: int, width: int) -> None:
    image = picture(height, width)
    expected = v2.Compose([v2.Resize(256), v2.CenterCrop(256)])(image)
    assert same(PRESETS["lsun256"](image), expected)


def test_celeba_faces_are_cut_by_the_published_rows_and_columns() -> None:
    pixels = noise(1, 218, 178)[0]
    expected = v2.Resize((64, 64))(Image.fromarray(pixels[57:185, 25:153]))
    assert same(PRESETS["celeba64"](Image.fromarray(pixels)), expected)


def test_an_image_that_is_not_an_aligned_face_is_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"me\.jpg has 300x300 pixels. .* are cropped from images of 218x178"):
        PRESETS["celeba64"](picture(300, 300), "me.jpg")


@pytest.mark.parametrize(("height", "width"), [(600, 1100), (1030, 512), (300, 280), (100, 90)])
def test_imagenet_is_halved_by_area_and_then_resized(height: int, width: int) -> None:
    pixels = noise(1, height, width)[0].astype(np.float64)
    halvings = int(np.log2(min(height, width) // 256)) if min(height, width) >= 512 else 0
    for _ in range(halvings):  # means of 2x2 pixels
        even = pixels[: pixels.shape[0] // 2 * 2, : pixels.shape[1] // 2 * 2]
        pixels = np.floor((even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]) / 4 + 0.5)
    image = Image.fromarray(pixels.astype(np.uint8))
    scale = 256 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - 256) // 2, (image.height - 256) // 2
    expected = np.asarray(image.crop((left, top, left + 256, top + 256)), dtype=np.int16)
    ours = np.asarray(PRESETS["imagenet256"](picture(height, width)), dtype=np.int16)
    assert np.abs(ours - expected).max() <= 3  # PIL rounds between the two directions of a mean


def test_explicit_options_change_a_preset() -> None:
    options = ImageOptions(preset="celeba64", size=32, crop="square", filter="lanczos", fit="exact")
    assert preprocessing_of(options) == Preprocessing((32, 32), "square", "exact", "lanczos")
    assert preprocessing_of(ImageOptions(preset="celeba64", crop="whole")).crop is None
    assert preprocessing_of(ImageOptions(crop="1:3,2:8"), (16, 16)).crop == Box(1, 3, 2, 8)


def test_an_explicit_box_is_cut_from_any_image_that_holds_it() -> None:
    box = preprocessing_of(ImageOptions(crop="8:24,0:16", size=16))
    image = picture(32, 40)
    assert same(box(image), image.crop((0, 8, 16, 24)))
    with pytest.raises(DataError, match="cropped from larger images"):
        box(picture(20, 40))


def test_the_square_at_the_centre_leaves_the_sides_out() -> None:
    image = picture(16, 48)
    assert same(Preprocessing((16, 16), "square")(image), image.crop((16, 0, 32, 16)))
    assert same(Preprocessing((16, 16), fit="exact")(image), image.resize((16, 16), Image.Resampling.BILINEAR))


def test_the_size_of_a_preset_must_be_the_size_of_the_model() -> None:
    with pytest.raises(OptionError, match="preset: celeba64 makes images of 64x64 pixels, the model has 32x32"):
        preprocessing_of(ImageOptions(preset="celeba64"), (32, 32))
    with pytest.raises(OptionError, match="size: 8 makes images of 8x8"):
        preprocessing_of(ImageOptions(size=8), (16, 16))
    with pytest.raises(OptionError, match="size: missing"):
        preprocessing_of(ImageOptions())


@pytest.mark.parametrize("crop", ["centre", "1:2", "3:3,0:4", "0:4,9:2", "-1:4,0:4"])
def test_a_crop_that_is_none_is_refused(crop: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        ImageOptions(crop=crop)
