"""Prompts: what a pipeline is asked for, a text and any images beside it, read from a file. Imports no torch."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from diffprune.errors import DataError, OptionError
from diffprune.options.in_memory import InMemory

COLUMNS = ("text", "caption", "captions", "prompt")
"""Names under which rows hold a text, most telling first."""

_FILE_NAME = "_file_name"


@dataclass(frozen=True)
class Prompt:
    """A text, and files of images by the name of the argument that the pipeline's call takes them by."""

    text: str
    images: Mapping[str, Path] = field(default_factory=dict)


def read_prompts(path: Path | InMemory) -> list[Prompt]:
    """The prompts of a file: the lines of a text, or the rows of a .jsonl, as `prompt_of` takes them.

    Raises OptionError when it cannot be read or holds none, DataError for a row that is no prompt.
    """
    if isinstance(path, InMemory):
        return [Prompt(text) for text in path.value]
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"cannot read the prompts {path}: {error}") from error
    if not any(line.strip() for line in lines):
        raise OptionError(f"{path} holds no prompts; expected one a line")
    if path.suffix != ".jsonl":
        return [Prompt(line) for line in lines]
    return [prompt_of(row, path.parent, where) for row, where in rows_of_lines(lines, path)]


def rows_of_lines(lines: Sequence[str], path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the rows of a .jsonl file, and where each stands; raises DataError for one that is not an object."""
    for number, line in enumerate(lines, 1):
        where = f"line {number} of {path}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{where} is a {type(row).__name__}, expected an object")
        yield row, where


def prompt_of(row: Mapping[str, Any], folder: Path, where: str) -> Prompt:
    """The prompt in a row: its text named as in `COLUMNS`, its images by `<argument>_file_name`, below `folder`.

    So the row {"text": ..., "image_file_name": "a.png", "mask_image_file_name": "b.png"} is called with `image` and
    `mask_image` (the names of files are as in 🤗 imagefolder). Of several texts the first. Raises DataError for a row
    without text, or whose images are not there.
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
    """The argument of a pipeline's call that a name in a row stands for; None for a name of something else."""
    return name.removesuffix(_FILE_NAME) if name.endswith(_FILE_NAME) else None


def files_of(prompts: Path | InMemory | None) -> dict[str, str]:
    """A file of prompts, and the images that it names, among a stage's inputs: it notices when one of them changes."""
    if prompts is None:
        return {}
    if isinstance(prompts, InMemory):
        return {"prompts": prompts}
    images = {str(file) for prompt in read_prompts(prompts) for file in prompt.images.values()}
    return {"prompts": str(prompts), **{f"image {file}": file for file in sorted(images)}}


def by_images(prompts: Sequence[Prompt]) -> list[list[Prompt]]:
    """Prompts in their order, cut into runs of the same images."""
    return [list(same) for _, same in groupby(prompts, key=lambda prompt: prompt.images)]
