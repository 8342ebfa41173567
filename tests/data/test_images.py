"""Image sets from every kind of source."""

from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image

from diffprune.calibration.calibration_set import draw_calibration_images
from diffprune.data.digits import digits, split
from diffprune.data.images import load_batches, open_images, without_corrupt
from diffprune.errors import DataError

GREY = Image.fromarray(torch.arange(256, dtype=torch.uint8).view(16, 16).numpy())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images" / "deeper").mkdir(parents=True)
    GREY.save(tmp_path / "images" / "b.png")
    GREY.save(tmp_path / "images" / "deeper" / "a.png")
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    return tmp_path / "images"


def test_a_folder_is_read_in_the_order_of_its_paths(folder: Path) -> None:
    images = open_images(folder, (16, 16), 1)
    assert [path.name for path in images.rows] == ["b.png", "a.png"]


def test_pixels_become_floats_from_minus_one_to_one(folder: Path) -> None:
    image = open_images(folder, (16, 16), 1)[0]
    assert (image.shape, image.dtype) == ((1, 16, 16), torch.float32)
    assert torch.allclose(image.flatten(), torch.linspace(-1, 1, 256), atol=1e-6)


def test_channels_and_size_follow_the_model(folder: Path) -> None:
    Image.new("RGBA", (40, 20), "red").save(folder / "wide.png")
    images = open_images(folder, (8, 8), 3)
    assert {tuple(images[i].shape) for i in range(3)} == {(3, 8, 8)}
    red = images[[p.name for p in images.rows].index("wide.png")]
    assert torch.allclose(red[:, 4, 4], torch.tensor([1.0, -1.0, -1.0]))


@pytest.mark.parametrize("kind", ["parquet", "saved dataset"])
def test_parquet_files_and_saved_datasets_are_read(kind: str, folder: Path, tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"label": [0, 1], "image": [str(p) for p in sorted(folder.rglob("*.png"))]})
    rows = rows.cast_column("image", datasets.Image())
    place = tmp_path / ("rows.parquet" if kind == "parquet" else "rows")
    rows.to_parquet(str(place)) if kind == "parquet" else rows.save_to_disk(str(place))
    images = open_images(place, (16, 16), 1)
    assert len(images) == 2
    assert torch.equal(images[1], open_images(folder, (16, 16), 1)[1])


def test_the_digits_are_1797_real_scans() -> None:
    images = open_images("digits", (16, 16), 1)
    assert len(images) == 1797
    assert set(digits()[1]) == set(range(10))
    train, test = split()
    assert sorted(train + test) == list(range(1797))


def test_a_dataset_without_images_is_refused(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(str(tmp_path / "t.parquet"))
    with pytest.raises(DataError, match="no image column; its columns: text"):
        open_images(tmp_path / "t.parquet", (16, 16), 1)


def test_four_channels_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="4 channels"):
        open_images(folder, (16, 16), 4)


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:44])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_come_in_order_and_name_what_cannot_be_read(num_workers: int, folder: Path) -> None:
    Image.new("L", (16, 16), 128).save(folder / "c.png")
    images = open_images(folder, (16, 16), 1)
    first, second = load_batches(images, [[2, 0], [1]], num_workers=num_workers)
    assert torch.equal(first, torch.stack([images[2], images[0]]))
    assert torch.equal(second, images[1][None])
    damage(folder / "c.png")
    with pytest.raises(DataError, match=r"^[^\n]*c\.png is not a readable image: [^\n]*$"):
        list(load_batches(images, [[0, 1], [2]], num_workers=num_workers))


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_corrupt_images_are_counted_named_and_left_out(
    kind: str, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage(folder / "b.png")
    if kind == "parquet":
        rows = datasets.Dataset.from_dict({"image": [str(p) for p in sorted(folder.rglob("*.png"))]})
        (tmp_path / "rows").mkdir()
        rows.cast_column("image", datasets.Image(decode=False)).to_parquet(str(tmp_path / "rows" / "0.parquet"))
    images = open_images(folder if kind == "folder" else tmp_path / "rows", (16, 16), 1)
    left = without_corrupt(images)
    assert (len(left), left.num_corrupt) == (1, 1)
    assert torch.equal(left[0], images[1])
    assert "b.png is not a readable image" in caplog.text
    damage(folder / "deeper" / "a.png")
    if kind == "folder":
        with pytest.raises(DataError, match="none of the 2 images"):
            without_corrupt(images)


def test_calibration_draws_another_image_for_a_corrupt_one(folder: Path) -> None:
    images = open_images(folder, (16, 16), 1)
    damage(folder / "b.png")
    assert torch.equal(draw_calibration_images(images, 1, 0, on_corrupt="skip").images, images[1][None])
    with pytest.raises(DataError, match="only 1 of 2 images can be read, expected 2; set num_calibration_images to 1"):
        draw_calibration_images(images, 2, 0, on_corrupt="skip")
    with pytest.raises(DataError, match=r"b\.png is not a readable image"):
        draw_calibration_images(images, 2, 0)
