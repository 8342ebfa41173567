"""Resize images to Inception's input, float32 (3, 299, 299): three methods, and a dataset that applies them.

The methods differ by more than rounding: FID changes by several points between them (Parmar, Zhang and Zhu 2022).
So the method is part of the protocol of a metric value.
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
    """Resize as pytorch-fid: bilinear, corners not aligned, not antialiased, in [0, 1]; then 2x - 1."""
    image = _channels_first(pixels) / 255
    resized = functional.interpolate(image[None], size=(SIZE, SIZE), mode="bilinear", align_corners=False)[0]
    return 2 * resized - 1


def clean(pixels: Pixels) -> Tensor:
    """Resize as clean-fid: Pillow's bicubic (antialiased) on float channels, clipped to [0, 255], not rounded.

    Then (x - 128) / 128.
    """
    channels = [
        Image.fromarray(pixels[:, :, i].astype(np.float32)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        for i in range(3)
    ]
    return (torch.from_numpy(np.stack([np.asarray(channel) for channel in channels])).clamp(0, 255) - 128) / 128


def tensorflow(pixels: Pixels) -> Tensor:
    """Resize as torch-fidelity and the original graph: TensorFlow 1's bilinear in [0, 255]; (x - 128) / 128."""
    image = _channels_first(pixels)[None]
    resized: Tensor = interpolate_bilinear_2d_like_tensorflow1x(image, size=(SIZE, SIZE), align_corners=False)
    return (resized[0] - 128) / 128


RESIZES: Mapping[str, Callable[[Pixels], Tensor]] = {"legacy": legacy, "clean": clean, "tensorflow": tensorflow}


@dataclass(frozen=True)
class RejectedImage:
    """An image that has no features, and the reason. corrupt: it cannot be read, and may be skipped.

    A value, since an exception would leave a worker process with its traceback.
    """

    reason: str
    corrupt: bool


@dataclass(frozen=True)
class InputBatch:
    """A batch of network inputs.

    inputs: resize -> (B, 3, 299, 299). indices: the images in the batch. rejected: the images left out.
    """

    inputs: Mapping[str, Tensor]
    indices: Sequence[int]
    rejected: Sequence[RejectedImage]


Input = tuple[int, dict[str, Tensor] | RejectedImage]


class InceptionInputs(Dataset[Input]):
    """Rows of an image set, decoded and prepared once, then resized by each method: {resize: (3, 299, 299)}.

    An item is a pair of index and value, for `collate_inputs`.
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
            return index, RejectedImage(str(error), corrupt=True)
        try:
            pixels = np.asarray(self.prepare(image, name))
        except DataError as error:
            return index, RejectedImage(str(error), corrupt=False)
        return index, {name: RESIZES[name](pixels) for name in self.resizes}


def collate_inputs(items: Sequence[Input]) -> InputBatch:
    """Collate items of `InceptionInputs` into one batch."""
    accepted = [(index, item) for index, item in items if not isinstance(item, RejectedImage)]
    names = accepted[0][1] if accepted else ()
    return InputBatch(
        {name: torch.stack([image[name] for _, image in accepted]) for name in names},
        [index for index, _ in accepted],
        [item for _, item in items if isinstance(item, RejectedImage)],
    )


def _channels_first(pixels: Pixels) -> Tensor:
    return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1).contiguous()
