"""What a decoded image is: upright, 8 bits a channel, grey or RGB; anything else is an error that names the file."""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import diffprune
from diffprune.data.decoding import decode
from diffprune.data.images import image_files, open_images
from diffprune.errors import DataError
from diffprune.evaluation.image_preparation import Preparation
from diffprune.evaluation.inception_inputs import InceptionInputs
from tests.helpers.archives import noise, write_zip

ORIENTATION = 0x0112


def decoded(image: Image.Image, kind: str = "PNG", **options: object) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return decode(io.BytesIO(buffer.getvalue()), "a picture")


def png16(pixels: np.ndarray, colour: int) -> bytes:
    """A PNG of 16 bits a channel (colour 0: grey, 2: RGB), written by hand: PIL writes grey ones only."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    parts = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)), (b"IDAT", zlib.compress(rows)))
    chunks = [*parts, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def test_16_bits_are_scaled_to_8_and_not_clipped() -> None:
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    grey = decode(io.BytesIO(png16(levels * 257, 0)), "grey")
    assert (grey.mode, grey.size) == ("L", (16, 16))
    assert np.array_equal(np.asarray(grey), levels)
    between = decode(io.BytesIO(png16(np.minimum(levels.astype(int) * 257 + 100, 65535), 0)), "between")
    assert np.array_equal(np.asarray(between), levels)
    colours = decode(io.BytesIO(png16(np.stack([levels * 257] * 3, -1), 2)), "colours")
    assert np.array_equal(np.asarray(colours)[..., 1], levels)
    tiff = decoded(Image.fromarray(levels * 257), "TIFF")
    assert np.array_equal(np.asarray(tiff), levels)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_whose_range_nothing_tells_are_refused(mode: str) -> None:
    with pytest.raises(DataError, match="a picture is not a readable image: its pixels have 32 bits"):
        decoded(Image.new(mode, (4, 4), 3), "TIFF")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_images_are_turned_as_their_exif_data_say(orientation: int, kind: str) -> None:
    seen = np.zeros((16, 32), dtype=np.uint8)
    seen[:8, :8] = 255  # light at the top left
    stored = {
        1: seen, 2: seen[:, ::-1], 3: seen[::-1, ::-1], 4: seen[::-1], 5: seen.T, 6: np.rot90(seen),
        7: seen[::-1, ::-1].T, 8: np.rot90(seen, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    found = np.asarray(decoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif))
    assert found.shape == seen.shape
    assert np.abs(found.astype(int) - seen).max() < 10


def test_damaged_exif_data_do_not_make_an_image_unreadable() -> None:
    assert decoded(Image.new("L", (4, 4)), "JPEG", exif=b"Exif\0\0no exif at all").size == (4, 4)


def test_every_reader_turns_images(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    for name, turned in (("stored", True), ("seen", False)):
        (tmp_path / name).mkdir()
        for index, pixels in enumerate(noise(2, 24, 16)):
            image = Image.fromarray(np.ascontiguousarray(np.rot90(pixels)) if turned else pixels)
            image.save(tmp_path / name / f"{index}.png", **({"exif": exif} if turned else {}))
    first, second = (open_images(tmp_path / name, (24, 16), 3) for name in ("stored", "seen"))
    assert torch.equal(first[1], second[1])
    inputs = [InceptionInputs(some.rows, "", Preparation(), ["legacy"])[0][1] for some in (first, second)]
    assert torch.equal(*(value["legacy"] for value in inputs if isinstance(value, dict)))
    assert diffprune.evaluate(tmp_path / "stored", tmp_path / "seen", metrics=("mse",))["mse"] == 0


def test_transparency_is_dropped_without_a_word() -> None:
    pixels = noise(1, 8, 8)[0]
    alpha = np.full((8, 8, 1), 40, dtype=np.uint8)
    assert np.array_equal(np.asarray(decoded(Image.fromarray(np.concatenate([pixels, alpha], -1)))), pixels)
    assert decoded(Image.new("LA", (4, 4), (7, 40))).getpixel((0, 0)) == 7
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert decoded(palette, transparency=bytes([255, 40])).getpixel((0, 0)) == (10, 20, 30)
    assert decoded(Image.new("CMYK", (4, 4), 0), "JPEG").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("num_pixels", [150, 70])
def test_decompression_bombs_are_refused_by_name(num_pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """PIL only warns of images up to twice its limit."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", num_pixels)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        with pytest.raises(DataError, match=r"a picture is not a readable image: .*decompression bomb"):
            decoded(Image.new("L", (16, 16)))


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    data = tmp_path / ".cache" / "data"  # a hidden folder above DATA hides nothing
    names = ["a.png", "deeper/b.png", "._a.png", ".ipynb_checkpoints/a.png", "__MACOSX/a.png", "deeper/.old/c.png"]
    for name in names:
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(data / name)
    assert [str(path.relative_to(data)) for path in image_files(data)] == names[:2]


def test_hidden_files_of_a_zip_are_left_out(tmp_path: Path) -> None:
    from diffprune.data.published.archives import open_archive

    names = ["faces/a.png", "faces/._a.png", "__MACOSX/faces/b.png", ".hidden/c.png"]
    path = write_zip(tmp_path / "faces.zip", dict.fromkeys(names, b""))
    with open_archive(path, scratch=tmp_path / "scratch", by_resolution=False, resolution=None) as archive:
        assert [item.name for item in archive.items] == ["a.png"]
