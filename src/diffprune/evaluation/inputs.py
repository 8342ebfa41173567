"""Images as Inception takes them, float32 (3, 299, 299): one function per way to get there, and a data set of them.

The three ways differ in more than rounding: FID moves by several points between them (Parmar, Zhang and Zhu 2022),
so each belongs to the protocol of a number.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from diffprune.data.images import load_image
from diffprune.errors import DataError

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


class InceptionInputs(Dataset[dict[str, Tensor] | str]):
    """The first rows of an image set, each decoded once and resized in every way asked for: {resize: (3, 299, 299)}.

    An image that cannot be read is a text that says so: an exception would come out of a worker process with its
    traceback.
    """

    def __init__(self, rows: Sequence[Any], num: int, source: str, resizes: Sequence[str]) -> None:
        self.rows = rows
        self.num = num
        self.source = source
        self.resizes = tuple(resizes)

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> dict[str, Tensor] | str:
        try:
            image = load_image(self.rows[index], f"image {index} of {self.source}").convert("RGB")
        except DataError as error:
            return str(error)
        pixels = np.asarray(image)
        return {name: RESIZES[name](pixels) for name in self.resizes}


def batch_of(items: Sequence[dict[str, Tensor] | str]) -> dict[str, Tensor] | str:
    """Items stacked, or the first text among them."""
    images = [item for item in items if not isinstance(item, str)]
    if len(images) < len(items):
        return next(item for item in items if isinstance(item, str))
    return {name: torch.stack([image[name] for image in images]) for name in images[0]}


def _channels_first(pixels: Pixels) -> Tensor:
    return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1).contiguous()
