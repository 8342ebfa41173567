"""Image sets: open a folder, parquet files, a 🤗 data set, images in memory or the digits, and load batches."""

import io
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2.functional import normalize, pil_to_tensor, to_dtype

from diffprune.data.decoding import decode
from diffprune.data.digits import digits
from diffprune.data.memory_images import MemoryRow
from diffprune.data.presets import Preprocessing
from diffprune.data.published.archive_items import SUFFIXES, is_image
from diffprune.errors import DataError
from diffprune.options.in_memory import InMemory, describes_memory
from diffprune.pipelines.model_source import check_data_exists, sought_on_hub
from diffprune.runs.progress import progress

SEQUENCES = "sequences"
"""Subfolder of sampled images that holds the image after every step."""

NUM_CHECKED = 64
"""Images per batch while all images of a set are checked."""

_log = logging.getLogger(__name__)


class ImageSet(Dataset[Tensor]):
    """Map-style data set of preprocessed images of one size, float32 (C, H, W) in [-1, 1].

    Images are converted to RGB (3 channels) or grayscale (1), then preprocessed. Item access raises DataError that
    names an unreadable image. num_corrupt: number of unreadable images that were skipped. labels: the class of each
    image; None if the model is not class-conditional.
    """

    def __init__(
        self,
        rows: Sequence[Any],
        preprocessing: Preprocessing,
        channels: int,
        source: str,
        *,
        num_corrupt: int = 0,
        labels: Sequence[int] | None = None,
    ) -> None:
        if channels not in (1, 3):
            raise DataError(f"the model has {channels} channels; images can have 1 (grayscale) or 3 (RGB)")
        self.rows = rows
        self.source = source
        self.preprocessing = preprocessing
        self.channels = channels
        self.num_corrupt = num_corrupt
        self.labels = labels

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (C, H, W) of every image."""
        return (self.channels, *self.preprocessing.size)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        return self.prepare(*self.read(index))

    def read(self, index: int) -> tuple[Image.Image, str]:
        """Return an image with its channels converted, and its name; raises DataError with this name."""
        row = self.rows[index]
        name = row_name(row, f"image {index} of {self.source}")
        return load_image(row, name).convert("RGB" if self.channels == 3 else "L"), name

    def prepare(self, image: Image.Image, name: str) -> Tensor:
        """Return the pixels of an image after preprocessing; raises DataError if the crop does not fit the image."""
        pixels = to_dtype(pil_to_tensor(self.preprocessing(image, name)), torch.float32, scale=True)
        prepared: Tensor = normalize(pixels, [0.5], [0.5], inplace=True)
        return prepared


def open_images(
    source: str | Path,
    preprocessing: Preprocessing | tuple[int, int],
    channels: int,
    *,
    labels: Sequence[int] | None = None,
) -> ImageSet:
    """Open DATA as an image set.

    source: a folder of images or of parquet files, a parquet file, a 🤗 dataset id, a saved data set, `digits`, or
    images in memory. preprocessing: a (height, width) in pixels means the preset `model` at this size. Raises DataError
    if there are no images.
    """
    by = preprocessing if isinstance(preprocessing, Preprocessing) else Preprocessing(preprocessing)
    return ImageSet(open_rows(source), by, channels, str(source), labels=labels)


def open_rows(source: str | Path) -> Sequence[Any]:
    """Return the rows of DATA, which `load_image` decodes; DATA is as in `open_images`. Raises DataError."""
    if isinstance(source, InMemory):
        rows: Sequence[Any] = source.value.rows
        return rows
    name, path = str(source), Path(source)
    if name == "digits":
        return digits()[0]
    return image_files(path) if is_plain_folder(path) else image_column(open_table(name), name)


def is_plain_folder(path: Path) -> bool:
    """Return whether a path is a folder of image files, not of parquet files or a saved data set."""
    return path.is_dir() and not (path / "dataset_info.json").exists() and not any(path.glob("*.parquet"))


def open_table(name: str) -> Any:
    """Open a parquet file or folder of them, a saved data set or a dataset id, with all columns; raises DataError."""
    if describes_memory(name):
        raise DataError(f"data: {name}: these images are no longer in memory; give them again as data")
    check_data_exists(name)
    return _dataset(Path(name), name)


def load_batches(images: ImageSet, batches: Iterable[list[int]], *, num_workers: int = 0) -> Iterator[Tensor]:
    """Yield the images of each batch of indices, (B, C, H, W), decoded in `num_workers` processes (0: in this one).

    Raises DataError that names an unreadable image.
    """
    for loaded in _attempts(images, batches, num_workers, prepare=True):
        errors = [item for item in loaded if isinstance(item, DataError)]
        if errors:
            raise errors[0]
        yield torch.stack([item for item in loaded if isinstance(item, Tensor)])


def without_corrupt(images: ImageSet, *, num_workers: int = 0) -> ImageSet:
    """Read all images and return the set without unreadable ones, each of which is named in a warning.

    Raises DataError if no image can be read.
    """
    readable: list[int] = []
    batches = [list(range(i, min(i + NUM_CHECKED, len(images)))) for i in range(0, len(images), NUM_CHECKED)]
    with progress(f"checking {images.source}", len(images), "images") as advance:
        attempts = _attempts(images, batches, num_workers, prepare=False)
        for batch, loaded in zip(batches, attempts, strict=True):
            for index, item in zip(batch, loaded, strict=True):
                if isinstance(item, DataError):
                    _log.warning("skipped: %s", item)
                else:
                    readable.append(index)
            advance(len(batch), "")
    if not readable:
        raise DataError(f"none of the {len(images)} images of {images.source} can be read")
    num_corrupt = len(images) - len(readable)
    if num_corrupt == 0:
        return images
    kept = rows_at(images.rows, readable)
    labels = None if images.labels is None else [images.labels[i] for i in readable]
    return ImageSet(kept, images.preprocessing, images.channels, images.source, num_corrupt=num_corrupt, labels=labels)


def rows_at(rows: Any, indices: Sequence[int]) -> Any:
    """Return some rows of DATA, in the order of `indices`."""
    return rows.select(indices) if hasattr(rows, "select") else [rows[i] for i in indices]


class _Attempts(Dataset["Tensor | DataError | None"]):
    """Items of an image set, or the DataError of an unreadable one: as values, errors of workers keep their text.

    prepare: False to only read the images; the items are then None.
    """

    def __init__(self, images: ImageSet, prepare: bool) -> None:
        self.images = images
        self.prepare = prepare

    def __getitem__(self, index: int) -> Tensor | DataError | None:
        try:
            if self.prepare:
                return self.images[index]
            self.images.read(index)
        except DataError as error:
            return error
        return None


def _attempts(
    images: ImageSet, batches: Iterable[list[int]], num_workers: int, *, prepare: bool
) -> Iterable[list[Tensor | DataError | None]]:
    return DataLoader(
        _Attempts(images, prepare), batch_sampler=batches, collate_fn=list, num_workers=num_workers,
        generator=torch.Generator(),  # the loader draws a seed for its workers: not from the global state
    )  # fmt: skip


def image_files(folder: Path) -> list[Path]:
    """Return all image files below a folder, sorted by path; raises DataError if there are none.

    Hidden files and folders are skipped. In a folder that `sample` wrote, only files at its top count.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder}")
    paths = folder.glob("*") if (folder / SEQUENCES).is_dir() else folder.rglob("*")
    files = sorted(path for path in paths if is_image(path.relative_to(folder)))
    if not files:
        raise DataError(f"{folder} holds no images ({', '.join(SUFFIXES)})")
    return files


def _dataset(path: Path, name: str) -> Any:
    import datasets

    try:
        if path.suffix == ".parquet":
            rows = datasets.Dataset.from_parquet(str(path))
        elif path.is_dir() and (shards := sorted(map(str, path.glob("*.parquet")))):
            rows = datasets.Dataset.from_parquet(shards)
        elif path.is_dir():
            rows = datasets.load_from_disk(str(path))
        elif path.is_file():
            raise DataError(
                f"{name} is a {path.suffix or 'nameless'} file, expected a folder of images or a parquet file"
            )
        else:
            rows = datasets.load_dataset(name, split="train")
    except DataError:
        raise
    except Exception as error:  # datasets raises a different class for each way a source can be broken
        raise DataError(f"cannot read images from {name}: {sought_on_hub(name)}{error}") from error
    return rows["train"] if isinstance(rows, dict) else rows


def image_column(rows: Any, name: str) -> Any:
    """Return the image column, not decoded; raises DataError if there is none."""
    import datasets

    for column, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            return rows.cast_column(column, datasets.Image(decode=False)).select_columns([column])
        if isinstance(feature, dict) and "bytes" in feature:
            return rows.select_columns([column])
    raise DataError(f"{name} has no image column; its columns: {', '.join(rows.features)}")


def row_name(row: Any, what: str) -> str:
    """Return the file name of a row of an image set, or `what` if it has none."""
    if isinstance(row, Path):
        return str(row)
    if isinstance(row, dict):
        (cell,) = row.values()
        return cell.get("path") or what
    return what


def load_image(row: Any, what: str = "") -> Image.Image:
    """Decode a row of an image set, or a file; raises DataError that names it."""
    if isinstance(row, Image.Image):
        return row
    if isinstance(row, MemoryRow):
        return row.image(what)
    what = row_name(row, what)
    file: Any = row
    if not isinstance(row, Path):
        (cell,) = row.values()
        file = io.BytesIO(cell["bytes"]) if cell.get("bytes") is not None else cell["path"]
    return decode(file, what)
