"""Read the captions of DATA: from a text column, or from the metadata.jsonl of an image folder."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from diffprune.data.images import image_files, is_plain_folder, open_rows, open_table
from diffprune.errors import DataError
from diffprune.options.in_memory import InMemory
from diffprune.pipelines.prompts import COLUMNS, Prompt, argument_of, prompt_of, rows_of_lines

METADATA = "metadata.jsonl"
"""File in an image folder: one JSON object per line, with `file_name`, a text, and conditioning images."""

_NEEDED = (
    "a text-conditioned model needs a text for each image: give images with captions, or data `generated` and prompts"
)


def open_captioned(source: str, arguments: Collection[str] = ()) -> tuple[Any, list[Prompt]]:
    """Return the rows of DATA as in `open_rows`, and the caption of each row: the first if it has several.

    A parquet file or dataset has captions in a column of `COLUMNS`. A folder has them in metadata.jsonl (the layout of
    🤗 imagefolder), which may name conditioning images as in `prompt_of`; these are not rows.
    arguments: arguments of the pipeline's call; other file names in metadata.jsonl are ignored.
    Raises DataError if there are no captions, or if an image has none.
    """
    path = Path(source)
    if isinstance(source, InMemory):
        images = source.value
        if images.table is not None:
            return images.rows, _by_column(images.table, source)
        return images.rows, [Prompt(text) for text in images.captions(source)]
    if source == "digits":
        raise DataError(f"digits have no captions; {_NEEDED}")
    if is_plain_folder(path):
        return _by_metadata(path, arguments)
    return open_rows(source), _by_column(open_table(source), source)


def _by_metadata(folder: Path, arguments: Collection[str]) -> tuple[list[Path], list[Prompt]]:
    if not (folder / METADATA).is_file():
        raise DataError(f"{folder} has no {METADATA} with captions; {_NEEDED}")
    captions: dict[Path, Prompt] = {}
    lines = (folder / METADATA).read_text(encoding="utf-8").splitlines()
    for row, where in rows_of_lines(lines, folder / METADATA):
        name = row.pop("file_name", None)
        if not isinstance(name, str):
            raise DataError(f"{where} holds no `file_name`; expected one and a text ({', '.join(COLUMNS)})")
        known = {key: value for key, value in row.items() if key in COLUMNS or argument_of(key) in arguments}
        captions[folder / name] = _captioned(known, folder, where)
    sources = {file for prompt in captions.values() for file in prompt.images.values()}
    files = [path for path in image_files(folder) if path in captions or path not in sources]
    missing = next((path for path in files if path not in captions), None)
    if missing is not None:
        raise DataError(f"{missing} has no line in {folder / METADATA}; {_NEEDED}")
    return files, [captions[path] for path in files]


def _by_column(table: Any, name: str) -> list[Prompt]:
    column = next((column for column in COLUMNS if column in table.features), None)
    if column is None:
        raise DataError(
            f"{name} has no column of captions ({', '.join(COLUMNS)}); its columns: {', '.join(table.features)}; "
            f"{_NEEDED}"
        )
    rows = enumerate(table[column])
    return [_captioned({column: value}, Path(), f"image {number} of {name}") for number, value in rows]


def _captioned(row: dict[str, Any], folder: Path, where: str) -> Prompt:
    try:
        return prompt_of(row, folder, where)
    except DataError as error:
        raise DataError(f"{error}; {_NEEDED}") from error
