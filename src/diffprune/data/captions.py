"""The captions of the images of DATA: a column of text, or the metadata of a folder of images."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffprune.data.images import image_files, is_plain_folder, open_table
from diffprune.errors import DataError

COLUMNS = ("text", "caption", "captions", "prompt")
"""Names under which data sets hold what an image shows, most telling first."""

METADATA = "metadata.jsonl"
"""File in a folder of images: one JSON object a line, with `file_name` and a text."""

_NEEDED = (
    "a text-conditioned model needs a text for each image: give images with captions, or data `generated` and prompts"
)


def captions_of(source: str) -> list[str]:
    """The caption of each image of DATA, in the order of `open_rows`; of several captions the first.

    From a column of text named as in `COLUMNS` of a parquet file or data set; in a folder, from its metadata.jsonl (the
    layout of 🤗 imagefolder). Raises DataError where there are none, or where an image has none.
    """
    path = Path(source)
    if source == "digits":
        raise DataError(f"digits bear no captions; {_NEEDED}")
    found = _by_metadata(path) if is_plain_folder(path) else _by_column(open_table(source), source)
    captions = []
    for number, value in enumerate(found):
        first = value[0] if isinstance(value, list) and value else value
        if not isinstance(first, str):
            raise DataError(f"image {number} of {source} has no caption (got {value!r}, expected a text); {_NEEDED}")
        captions.append(first)
    return captions


def _by_metadata(folder: Path) -> list[Any]:
    if not (folder / METADATA).is_file():
        raise DataError(f"{folder} has no {METADATA} with captions; {_NEEDED}")
    told: dict[Path, Any] = {}
    for number, line in enumerate((folder / METADATA).read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            row = _row(line, f"line {number} of {folder / METADATA}")
            column = next((name for name in COLUMNS if name in row), None)
            if column is None:
                raise DataError(
                    f"line {number} of {folder / METADATA} holds no caption ({', '.join(COLUMNS)}); {_NEEDED}"
                )
            told[folder / row["file_name"]] = row[column]
    files: Sequence[Path] = image_files(folder)
    missing = next((path for path in files if path not in told), None)
    if missing is not None:
        raise DataError(f"{missing} has no line in {folder / METADATA}; {_NEEDED}")
    return [told[path] for path in files]


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where} is not JSON: {error}") from error
    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
        raise DataError(f"{where} holds no `file_name`; expected an object with file_name and {', '.join(COLUMNS)}")
    return row


def _by_column(table: Any, name: str) -> list[Any]:
    for column in COLUMNS:
        if column in table.features:
            return list(table[column])
    raise DataError(
        f"{name} has no column of captions ({', '.join(COLUMNS)}); its columns: {', '.join(table.features)}; {_NEEDED}"
    )
