"""The classes of the images of DATA: a column of whole numbers, or one sub-folder per class."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffprune.data.digits import digits
from diffprune.data.images import is_plain_folder, open_rows, open_table
from diffprune.errors import DataError

COLUMNS = ("label", "labels", "class", "class_label", "fine_label")
"""Names under which data sets hold the class, most telling first."""


def labels_of(source: str, num_classes: int) -> list[int]:
    """The class of each image of DATA, in the order of `open_rows`.

    From an integer column named as in `COLUMNS` of a parquet file or data set; in a folder, from the sub-folder that an
    image lies in: its place among all of them by name (the layout of ImageNet). Raises DataError where there are none,
    or where one is not among 0 to num_classes - 1.
    """
    name, path = str(source), Path(source)
    if name == "digits":
        labels = list(digits()[1])
    elif is_plain_folder(path):
        labels = _by_folder(path)
    else:
        labels = _by_column(open_table(name), name)
    wrong = next((label for label in labels if not 0 <= label < num_classes), None)
    if wrong is not None:
        raise DataError(f"{source} holds class {wrong}, the model has 0 to {num_classes - 1}")
    return labels


def _by_folder(folder: Path) -> list[int]:
    rows: Sequence[Path] = open_rows(folder)
    parents = [path.relative_to(folder).parts[0] if path.parent != folder else None for path in rows]
    if None in parents:
        raise DataError(
            f"{folder} holds images of no class: {rows[parents.index(None)].name} lies in none of its sub-folders; "
            "a class-conditional model needs one sub-folder per class, or a data set with a column `label`"
        )
    numbers = {name: number for number, name in enumerate(sorted({str(parent) for parent in parents}))}
    return [numbers[str(parent)] for parent in parents]


def _by_column(table: Any, name: str) -> list[int]:
    import datasets

    for column in COLUMNS:
        feature = table.features.get(column)
        if isinstance(feature, datasets.ClassLabel) or str(getattr(feature, "dtype", "")).startswith(("int", "uint")):
            return [int(label) for label in table[column]]
    raise DataError(
        f"{name} has no column of classes ({', '.join(COLUMNS)}, whole numbers); its columns: "
        f"{', '.join(table.features)}. A class-conditional model needs the class of each image"
    )
