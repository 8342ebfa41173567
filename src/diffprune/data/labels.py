"""Class labels of the images of DATA: an integer column, one subfolder per class, or pairs in memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffprune.data.digits import digits
from diffprune.data.images import is_plain_folder, open_rows, open_table
from diffprune.errors import DataError
from diffprune.options.in_memory import InMemory

COLUMNS = ("label", "labels", "class", "class_label", "fine_label")
"""Names of the label column in data sets, in order of preference."""


def labels_of(source: str, num_classes: int) -> list[int]:
    """Return the class of each image of DATA, in the order of `open_rows`.

    In a parquet file or data set, the class is an integer column named as in `COLUMNS`. In a folder, it is the index of
    the image's subfolder among all subfolders sorted by name, as in ImageNet. Raises DataError if there are no classes,
    or if one is not in 0 to num_classes - 1.
    """
    name, path = str(source), Path(source)
    if isinstance(source, InMemory):
        images = source.value
        labels = images.labels(name) if images.table is None else _by_column(images.table, name)
    elif name == "digits":
        labels = list(digits()[1])
    elif is_plain_folder(path):
        labels = _by_folder(path)
    else:
        labels = _by_column(open_table(name), name)
    wrong = next((label for label in labels if not 0 <= label < num_classes), None)
    if wrong is not None:
        raise DataError(f"{source} has class {wrong}, the model has 0 to {num_classes - 1}")
    return labels


def _by_folder(folder: Path) -> list[int]:
    rows: Sequence[Path] = open_rows(folder)
    parents = [path.relative_to(folder).parts[0] if path.parent != folder else None for path in rows]
    if None in parents:
        raise DataError(
            f"{folder} has images without a class: {rows[parents.index(None)].name} is in none of its subfolders. "
            "A class-conditional model needs one subfolder per class, or a data set with a column `label`"
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
        f"{name} has no integer column of classes ({', '.join(COLUMNS)}); its columns: "
        f"{', '.join(table.features)}. A class-conditional model needs the class of each image"
    )
