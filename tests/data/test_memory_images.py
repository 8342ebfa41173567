"""Images in memory as DATA: one set of rules with image files, and one line for each mistake."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

import diffprune
from diffprune.calibration.captions import open_captioned
from diffprune.data.digits import digits
from diffprune.data.images import load_batches, open_images
from diffprune.data.labels import labels_of
from diffprune.data.memory_images import data_source

NUM = 12


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return digits()[0][:NUM]


@pytest.fixture(scope="module")
def pixels(images: list[Image.Image]) -> Tensor:
    return torch.stack([torch.from_numpy(np.array(image))[None] for image in images]).float() / 127.5 - 1


@pytest.fixture(scope="module")
def folder(images: list[Image.Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("images")
    for index, image in enumerate(images):
        image.save(place / f"{index:02d}.png")
    return place


class Pairs(Dataset[Any]):
    """A torch data set of pairs of an image and something else."""

    def __init__(self, images: Any, extras: Any) -> None:
        self.pairs = list(zip(images, extras, strict=True))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Any:
        return self.pairs[index]


class Stream(IterableDataset[Any]):
    """A torch data set without a length."""

    def __iter__(self) -> Any:
        return iter(())


def table(images: list[Image.Image], **columns: Any) -> datasets.Dataset:
    features = {"image": datasets.Image(), **{name: datasets.Value(kind) for name, (kind, _) in columns.items()}}
    values = {"image": images, **{name: value for name, (_, value) in columns.items()}}
    return datasets.Dataset.from_dict(values, features=datasets.Features(features))


def batch(source: Any, size: int = 16, channels: int = 1, num_workers: int = 0) -> Tensor:
    opened = open_images(data_source(source), (size, size), channels)
    return next(iter(load_batches(opened, [list(range(len(opened)))], num_workers=num_workers)))


@pytest.mark.parametrize(("size", "channels"), [(16, 1), (12, 3)])
def test_all_sources_give_the_pixels_of_the_image_files(
    images: list[Image.Image], pixels: Tensor, folder: Path, size: int, channels: int
) -> None:
    expected = batch(folder, size, channels)
    paths = sorted(folder.iterdir())
    for source in (
        images,
        tuple(images),
        pixels,
        pixels.double(),
        paths,
        list(pixels),
        Pairs(pixels, range(NUM)),
        table(images),
    ):
        assert torch.equal(batch(source, size, channels), expected)


def test_worker_processes_read_images_in_memory(images: list[Image.Image]) -> None:
    assert torch.equal(batch(images, num_workers=1), batch(images))


def test_modes_of_pil_images_are_those_of_files(tmp_path: Path) -> None:
    deep = Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 257)
    deep.save(tmp_path / "deep.png")
    turned = Image.new("RGBA", (16, 16), (200, 100, 50, 0))
    turned.save(tmp_path / "turned.png")
    assert torch.equal(batch([deep, turned], channels=3), batch(tmp_path, channels=3))


def test_the_description_is_the_number_of_images_and_a_hash_of_their_content(
    images: list[Image.Image], pixels: Tensor, folder: Path
) -> None:
    of_list, of_tensor = data_source(images), data_source(pixels)
    assert of_list.startswith(f"{NUM} images in memory (list), sha256 ")
    assert of_list.split()[-1] == of_tensor.split()[-1] == data_source(sorted(folder.iterdir())).split()[-1]
    assert data_source(images[::-1]) != of_list
    assert data_source(Pairs(images, range(NUM))).split()[-1] != of_list.split()[-1]
    assert data_source(images[0]).startswith("1 image in memory")


def test_labels_and_captions_come_from_pairs_and_columns(images: list[Image.Image]) -> None:
    numbers, words = list(range(NUM)), [f"a {i}" for i in range(NUM)]
    assert labels_of(data_source(Pairs(images, torch.arange(NUM))), NUM) == numbers
    assert labels_of(data_source(table(images, label=("int64", numbers))), NUM) == numbers
    for source in (Pairs(images, words), table(images, text=("string", words))):
        assert [prompt.text for prompt in open_captioned(data_source(source))[1]] == words
    with pytest.raises(diffprune.DataError, match=r"image 0 of 12 images in memory.* has no label .*\(image, label\)"):
        labels_of(data_source(images), NUM)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: (x * 127).to(torch.uint8), r"tensor of torch.uint8, expected floating point in \[-1, 1\]; convert"),
        (lambda x: x * 3, r"got values from -3 to 3, expected \[-1, 1\]"),
        (lambda x: x * float("nan"), "got values from nan"),
        (lambda x: x.repeat(1, 4, 1, 1), r"got 4 channels in \(12, 4, 16, 16\), expected 1 or 3"),
        (lambda x: x[0], r"tensor of shape \(1, 16, 16\), expected \(N, C, H, W\)"),
        (lambda x: x[:0], r"tensor of shape \(0, 1, 16, 16\)"),
        (lambda x: [x[0], x[0] * 3], r"image 1 of data: got values from -3 to 2\.10588"),
        (lambda x: x.numpy(), "got numpy.ndarray, expected a folder"),
        (lambda x: [1, 2], "image 0 of data is int, expected a PIL image"),
        (lambda x: [], "got a list without images"),
        (lambda x: {"train": x}, "got dict, expected a folder"),
        (lambda x: Stream(), "expected a folder"),
        (lambda x: datasets.DatasetDict({"train": datasets.Dataset.from_dict({"a": [1]})}), "with train; expected one"),
        (lambda x: datasets.Dataset.from_dict({"a": [1]}), "the Dataset has no image column; its columns: a"),
    ],
)  # fmt: skip
def test_wrong_data_are_named_in_one_line(pixels: Tensor, make: Any, message: str) -> None:
    with pytest.raises(diffprune.DataError, match=message) as caught:
        data_source(make(pixels))
    assert "\n" not in str(caught.value)


def test_an_item_that_a_data_set_cannot_read_is_named() -> None:
    class Broken(Dataset[Any]):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Any:
            raise RuntimeError("no such shard")

    with pytest.raises(diffprune.DataError, match="image 0 of data cannot be read: RuntimeError: no such shard"):
        data_source(Broken())


def test_a_plan_on_images_in_memory_prunes_with_them_until_it_is_saved(
    images: list[Image.Image], folder: Path, tmp_path: Path
) -> None:
    pipeline = diffprune.load_pipeline("digits")
    options: dict[str, Any] = {"num_calibration_images": 4, "timestep_stride": 250, "ratio": 0.5}
    in_memory, by_folder = (diffprune.plan(pipeline, data=data, **options) for data in (images, folder))
    assert in_memory.groups == by_folder.groups
    small = [diffprune.prune(pipeline, p, num_compensation_images=16) for p in (in_memory, by_folder)]
    assert all(map(torch.equal, small[0].unet.parameters(), small[1].unet.parameters()))
    in_memory.save(tmp_path / "plan.json")
    with pytest.raises(diffprune.DataError, match="no longer in memory; give them again as data"):
        diffprune.prune(pipeline, tmp_path / "plan.json")
    again = diffprune.prune(pipeline, tmp_path / "plan.json", data=images, num_compensation_images=16)
    assert all(map(torch.equal, small[0].unet.parameters(), again.unet.parameters()))


def test_images_in_memory_are_evaluated_by_their_place(images: list[Image.Image], pixels: Tensor, folder: Path) -> None:
    by_file = diffprune.evaluate(folder, folder, metrics=["ssim", "mse", "frechet_distance"])
    assert diffprune.evaluate(images, folder, metrics=["ssim", "mse", "frechet_distance"]) == by_file
    assert diffprune.evaluate(pixels, images, metrics="mse") == {"mse": 0}
    with pytest.raises(diffprune.DataError, match="1 image indices are in only one of"):
        diffprune.evaluate(images[1:], folder)


def test_training_on_images_in_memory_is_training_on_their_files(
    images: list[Image.Image], folder: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"steps": 2, "batch_size": 4, "device": "cpu"}
    pipeline = diffprune.load_pipeline("digits")
    one, other = (diffprune.finetune(pipeline, data=data, **options) for data in (images, folder))
    assert all(map(torch.equal, one.unet.parameters(), other.unet.parameters()))
