"""Image sets: one map-style view on a folder, a parquet file, a dataset or the digits."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from diffprune.data.digits import digits
from diffprune.errors import DataError
from diffprune.models.loading import is_hub_id
from diffprune.sampling.folder import SEQUENCES

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


class ImageSet(Dataset[Tensor]):
    """Images of one size, prepared for a denoiser: float32 (C, H, W) in [-1, 1].

    Images are converted to RGB (3 channels) or grey (1), resized so that the shorter side fits (bilinear,
    antialiased) and cropped at the centre. Item access raises DataError that names an image it cannot read.
    """

    def __init__(self, rows: Sequence[Any], size: tuple[int, int], channels: int, source: str) -> None:
        if channels not in (1, 3):
            raise DataError(f"the model takes {channels} channels; image files serve 1 (grey) or 3 (RGB)")
        self.rows = rows
        self.source = source
        self._mode = "RGB" if channels == 3 else "L"
        self._size = size
        self._transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5])])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        image = load_image(self.rows[index], f"image {index} of {self.source}").convert(self._mode)
        height, width = self._size
        if image.size != (width, height):
            shorter = max(height / image.height, width / image.width)
            resized = (max(height, round(image.height * shorter)), max(width, round(image.width * shorter)))
            image = v2.functional.center_crop(v2.functional.resize(image, list(resized)), [height, width])
        prepared: Tensor = self._transform(image)
        return prepared


def open_images(source: str | Path, size: tuple[int, int], channels: int) -> ImageSet:
    """Open DATA: a folder of images, a parquet file, a 🤗 dataset id or saved dataset, or `digits`.

    size: (height, width) in pixels. Raises DataError when nothing usable is there.
    """
    return ImageSet(open_rows(source), size, channels, str(source))


def open_rows(source: str | Path) -> Sequence[Any]:
    """The rows of DATA, as `open_images` takes it: what `load_image` decodes. Raises DataError."""
    name, path = str(source), Path(source)
    if name == "digits":
        return digits()[0]
    if path.is_dir() and not (path / "dataset_info.json").exists():
        return image_files(path)
    if path.exists() or is_hub_id(name):
        rows: Sequence[Any] = _dataset(path, name)
        return rows
    raise DataError(f"no images at {name}: no such folder or file; a hub id looks like owner/name; built in: digits")


def image_files(folder: Path) -> list[Path]:
    """All image files below a folder, sorted by path; raises DataError when it is missing or holds none.

    Of a folder that `sample` has made, those at its top.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder}")
    found = folder.glob("*") if (folder / SEQUENCES).is_dir() else folder.rglob("*")
    files = sorted(p for p in found if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not files:
        raise DataError(f"{folder} holds no images ({', '.join(SUFFIXES)})")
    return files


def _dataset(path: Path, name: str) -> Any:
    import datasets

    try:
        if path.suffix == ".parquet":
            rows = datasets.Dataset.from_parquet(str(path))
        elif path.is_dir():
            rows = datasets.load_from_disk(str(path))
        elif path.is_file():
            raise DataError(
                f"{name} is a {path.suffix or 'nameless'} file; expected a folder of images or a parquet file"
            )
        else:
            rows = datasets.load_dataset(name, split="train")
    except DataError:
        raise
    except Exception as error:  # datasets raises a different class for each way a source can be broken
        raise DataError(f"cannot read images from {name}: {error}") from error
    rows = rows["train"] if isinstance(rows, dict) else rows
    for column, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            return rows.cast_column(column, datasets.Image(decode=False)).select_columns([column])
        if isinstance(feature, dict) and "bytes" in feature:
            return rows.select_columns([column])
    raise DataError(f"{name} has no image column; its columns: {', '.join(rows.features)}")


def load_image(row: Any, what: str = "") -> Image.Image:
    """Decode one row of an image set, or a file; raises DataError that names it."""
    if isinstance(row, Image.Image):
        return row
    if isinstance(row, Path):
        file: Any = row
        what = str(row)
    else:
        (cell,) = row.values()
        what = cell.get("path") or what
        file = io.BytesIO(cell["bytes"]) if cell.get("bytes") is not None else cell["path"]
    try:
        with Image.open(file) as opened:
            image = opened.copy()
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
        raise DataError(f"{what} is not a readable image: {error}") from error
    return image
