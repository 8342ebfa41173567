"""Images as Inception takes them, float32 (3, 299, 299): one function per way to get there, and a data set of them.

The three ways differ in more than rounding: FID moves by several points between them (Parmar, Zhang and Zhu 2022),
so each belongs to the protocol of a number.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from diffprune.data.images import load_image, row_name
from diffprune.errors import DataError
from diffprune.evaluation.image_preparation import Preparation

SIZE = 299
Pixels = NDArray[np.uint8]


def legacy(pixels: Pixels) -> Tensor:
    """As pytorch-fid: bilinear, corners not aligned, not antialiased, in [0, 1]; then 2x - 1."""
    image = _channels_first(pixels) / 255
    resized = functional.interpolate(image[None], size=(SIZE, SIZE), mode="bilinear", align_corners=False)[0]
    return 2 * resized - 1


def clean(pixels: Pixels) -> Tensor:
    """As clean-fid: Pillow's bicubic (antialiased) on float channels, clipped to [0, 255], not rounded.

    Then (x - 128) / 128.
    """
    channels = [
        Image.fromarray(pixels[:, :, i].astype(np.float32)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        for i in range(3)
    ]
    return (torch.from_numpy(np.stack([np.asarray(channel) for channel in channels])).clamp(0, 255) - 128) / 128


def tensorflow(pixels: Pixels) -> Tensor:
    """As torch-fidelity and the original graph: TensorFlow 1's bilinear in [0, 255]; (x - 128) / 128."""
    image = _channels_first(pixels)[None]
    resized: Tensor = interpolate_bilinear_2d_like_tensorflow1x(image, size=(SIZE, SIZE), align_corners=False)
    return (resized[0] - 128) / 128


RESIZES: Mapping[str, Callable[[Pixels], Tensor]] = {"legacy": legacy, "clean": clean, "tensorflow": tensorflow}


@dataclass(frozen=True)
class Unusable:
    """What is wrong with an image. corrupt: it cannot be read, so that it may be left out.

    A value, since an exception would come out of a worker process with its traceback.
    """

    text: str
    corrupt: bool


@dataclass(frozen=True)
class InputBatch:
    """inputs: {resize: (B, 3, 299, 299)} of the images that can be used; indices: theirs; unusable: the others."""

    inputs: Mapping[str, Tensor]
    indices: Sequence[int]
    unusable: Sequence[Unusable]


Input = tuple[int, dict[str, Tensor] | Unusable]


class InceptionInputs(Dataset[Input]):
    """Rows of an image set, each decoded and prepared once and resized in every way asked for: {resize: (3, 299, 299)}.

    Items come with their index, for `batch_of`.
    """

    def __init__(self, rows: Sequence[Any], source: str, prepare: Preparation, resizes: Sequence[str]) -> None:
        self.rows = rows
        self.source = source
        self.prepare = prepare
        self.resizes = tuple(resizes)

    def __getitem__(self, index: int) -> Input:
        name = row_name(self.rows[index], f"image {index} of {self.source}")
        try:
            image = load_image(self.rows[index], name)
        except DataError as error:
            return index, Unusable(str(error), corrupt=True)
        try:
            pixels = np.asarray(self.prepare(image, name))
        except DataError as error:
            return index, Unusable(str(error), corrupt=False)
        return index, {name: RESIZES[name](pixels) for name in self.resizes}


def batch_of(items: Sequence[Input]) -> InputBatch:
    """Items of `InceptionInputs` as one batch."""
    found = [(index, item) for index, item in items if not isinstance(item, Unusable)]
    names = found[0][1] if found else ()
    return InputBatch(
        {name: torch.stack([image[name] for _, image in found]) for name in names},
        [index for index, _ in found],
        [item for _, item in items if isinstance(item, Unusable)],
    )


def _channels_first(pixels: Pixels) -> Tensor:
    return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1).contiguous()
