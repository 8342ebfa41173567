"""Read prompts from a file: a text and the input images of a pipeline's call. Imports no torch."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from diffprune.errors import DataError, OptionError
from diffprune.options.in_memory import InMemory

COLUMNS = ("text", "caption", "captions", "prompt")
"""Columns that may hold the text of a row, in order of preference."""

_FILE_NAME = "_file_name"


@dataclass(frozen=True)
class Prompt:
    """A text, and image files by the name of their argument in the pipeline's call."""

    text: str
    images: Mapping[str, Path] = field(default_factory=dict)


def read_prompts(path: Path | InMemory) -> list[Prompt]:
    """Read the prompts of a file: one per line of a text file, or per row of a .jsonl (see `prompt_of`).

    Raises OptionError if the file cannot be read or holds none, DataError for a row that is not a prompt.
    """
    if isinstance(path, InMemory):
        return [Prompt(text) for text in path.value]
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"cannot read the prompts {path}: {error}") from error
    if not any(line.strip() for line in lines):
        raise OptionError(f"{path} holds no prompts; expected one per line")
    if path.suffix != ".jsonl":
        return [Prompt(line) for line in lines]
    return [prompt_of(row, path.parent, where) for row, where in rows_of_lines(lines, path)]


def rows_of_lines(lines: Sequence[str], path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the rows of a .jsonl file and their locations; raise DataError for a row that is not an object."""
    for number, line in enumerate(lines, 1):
        where = f"line {number} of {path}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{where} is a {type(row).__name__}, expected a JSON object")
        yield row, where


def prompt_of(row: Mapping[str, Any], folder: Path, where: str) -> Prompt:
    """Return the prompt of a row: a text in one of `COLUMNS`, images in `<argument>_file_name`, relative to `folder`.

    {"text": ..., "image_file_name": "a.png", "mask_image_file_name": "b.png"} calls the pipeline with `image` and
    `mask_image` (column names as in 🤗 imagefolder). A list of texts stands for its first. Raises DataError for a row
    without a text, or with an image file that does not exist.
    """
    column = next((name for name in COLUMNS if name in row), None)
    value = None if column is None else row[column]
    text = value[0] if isinstance(value, list) and value else value
    if not isinstance(text, str):
        raise DataError(f"{where} has no text ({', '.join(COLUMNS)}): got {value!r}")
    files = {argument: file for name, file in row.items() if (argument := argument_of(name))}
    missing = next((file for file in files.values() if not (isinstance(file, str) and (folder / file).is_file())), None)
    if missing is not None:
        raise DataError(f"{where} names the image {missing!r}, which is not a file in {folder}")
    return Prompt(text, {name: folder / file for name, file in files.items()})


def argument_of(name: str) -> str | None:
    """Return the argument of a pipeline's call that a column stands for; None for any other column."""
    return name.removesuffix(_FILE_NAME) if name.endswith(_FILE_NAME) else None


def files_of(prompts: Path | InMemory | None) -> dict[str, str]:
    """Return a prompt file and its images as inputs of a stage, so that a change in one of them is noticed."""
    if prompts is None:
        return {}
    if isinstance(prompts, InMemory):
        return {"prompts": prompts}
    images = {str(file) for prompt in read_prompts(prompts) for file in prompt.images.values()}
    return {"prompts": str(prompts), **{f"image {file}": file for file in sorted(images)}}


def by_images(prompts: Sequence[Prompt]) -> list[list[Prompt]]:
    """Split prompts, in order, into consecutive runs with the same images."""
    return [list(run) for _, run in groupby(prompts, key=lambda prompt: prompt.images)]
