"""Captions of images: from a column, from a folder's metadata, or missing."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from diffprune.calibration.captions import open_captioned
from diffprune.data.images import open_rows
from diffprune.errors import DataError
from diffprune.pipelines.prompts import Prompt

GREY = Image.fromarray(np.zeros((8, 8), np.uint8))


def texts_of(source: str) -> list[str]:
    return [prompt.text for prompt in open_captioned(source)[1]]


def dataset(**columns: object) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"image": [GREY] * 3, **columns}).cast_column("image", datasets.Image())


def parquet_of(place: Path, **columns: object) -> str:
    file = str(place / "images.parquet")
    dataset(**columns).to_parquet(file)
    return file


def folder_of(place: Path, *names: str, lines: list[object]) -> Path:
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        GREY.save(place / name)
    (place / "metadata.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return place


@pytest.mark.parametrize("column", ["text", "caption", "captions", "prompt"])
def test_a_column_of_text_holds_the_captions(column: str, tmp_path: Path) -> None:
    assert texts_of(parquet_of(tmp_path, other=["x"] * 3, **{column: ["a", "", "c"]})) == ["a", "", "c"]


def test_of_several_captions_the_first_is_taken(tmp_path: Path) -> None:
    assert texts_of(parquet_of(tmp_path, captions=[["a", "b"], ["c"], ["d"]])) == ["a", "c", "d"]


def test_a_saved_data_set_holds_captions(tmp_path: Path) -> None:
    dataset(caption=["a", "b", "c"]).save_to_disk(str(tmp_path / "set"))
    assert texts_of(str(tmp_path / "set")) == ["a", "b", "c"]


def test_the_metadata_of_a_folder_name_each_image_in_any_order(tmp_path: Path) -> None:
    lines = [{"file_name": "b/z.png", "text": "last"}, {"file_name": "a.png", "text": "first"}]
    folder = folder_of(tmp_path, "a.png", "b/z.png", lines=lines)
    assert [path.name for path in open_rows(folder)] == ["a.png", "z.png"]
    assert texts_of(str(folder)) == ["first", "last"]


def test_missing_captions_are_refused_with_what_would_do(tmp_path: Path) -> None:
    remedy = "needs a text for each image: give images with captions, or data `generated`"
    with pytest.raises(DataError, match=f"digits have no captions.*{remedy}"):
        open_captioned("digits")
    with pytest.raises(DataError, match=f"no column of captions .*other; a text.*{remedy}"):
        open_captioned(parquet_of(tmp_path, other=["x"] * 3))
    with pytest.raises(DataError, match=r"image 1 of .* has no text .*got None"):
        open_captioned(parquet_of(tmp_path, text=["a", None, "c"]))
    plain = tmp_path / "plain"
    plain.mkdir()
    GREY.save(plain / "a.png")
    with pytest.raises(DataError, match=f"has no metadata.jsonl.*{remedy}"):
        open_captioned(str(plain))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"file_name": "a.png", "text": "x"}], "b.png has no line in"),
        ([{"text": "x"}], "line 1 of .* holds no `file_name`"),
        ([{"file_name": "a.png", "label": 3}], "line 1 of .* has no text .text, caption"),
        ([{"file_name": "a.png", "text": 7}, {"file_name": "b.png", "text": "x"}], "line 1 of .* has no text"),
        (["a.png"], "line 1 of .* is a str, expected a JSON object"),
    ],
)
def test_damaged_metadata_are_refused(lines: list[object], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        open_captioned(str(folder_of(tmp_path, "a.png", "b.png", lines=lines)))


def test_metadata_that_are_no_json_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a.png", lines=[])
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "cut')
    with pytest.raises(DataError, match=r"line 1 of .*metadata.jsonl is not JSON"):
        open_captioned(str(folder))


def test_files_that_are_no_arguments_of_the_call_are_left_alone(tmp_path: Path) -> None:
    row = {"file_name": "a.png", "text": "a cat", "original_file_name": "IMG_1.jpg", "image_file_name": "b.png"}
    rows, prompts = open_captioned(str(folder_of(tmp_path, "a.png", "b.png", lines=[row])), {"prompt", "image"})
    assert [path.name for path in rows] == ["a.png"]
    assert prompts == [Prompt("a cat", {"image": tmp_path / "b.png"})]
