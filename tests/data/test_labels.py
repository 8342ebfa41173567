"""Classes of images: from a column, from subfolders, or missing."""

from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from diffprune.data.images import open_rows
from diffprune.data.labels import labels_of
from diffprune.errors import DataError

GREY = Image.fromarray(np.zeros((8, 8), np.uint8))


def folder_of(place: Path, *names: str) -> Path:
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        GREY.save(place / name)
    return place


def parquet_of(place: Path, **columns: object) -> str:
    features = datasets.Features({"image": datasets.Image(), **dict.fromkeys(columns, datasets.Value("int64"))})
    file = str(place / "images.parquet")
    datasets.Dataset.from_dict({"image": [GREY] * 3, **columns}, features=features).to_parquet(file)
    return file


def test_sub_folders_are_classes_by_name(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "n02/b.png", "n01/z.png", "n02/deeper/a.png", "n10/c.png")
    assert [path.name for path in open_rows(folder)] == ["z.png", "b.png", "a.png", "c.png"]
    assert labels_of(str(folder), 3) == [0, 1, 1, 2]


def test_a_column_holds_the_classes(tmp_path: Path) -> None:
    assert labels_of(parquet_of(tmp_path, other=[7, 7, 7], label=[2, 0, 1]), 3) == [2, 0, 1]


def test_the_digits_have_ten() -> None:
    assert set(labels_of("digits", 10)) == set(range(10))


def test_images_without_classes_and_classes_the_model_lacks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a.png is in none of its subfolders"):
        labels_of(str(folder_of(tmp_path / "flat", "a.png", "n01/b.png")), 3)
    with pytest.raises(DataError, match=r"no integer column of classes .* its columns: image, other"):
        labels_of(parquet_of(tmp_path, other=[1, 1, 1]), 3)
    with pytest.raises(DataError, match="has class 9, the model has 0 to 8"):
        labels_of("digits", 9)
