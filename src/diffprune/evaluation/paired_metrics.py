"""Metrics of pairs: image i of one folder against image i of the other."""

import re
from pathlib import Path

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from diffprune.data.images import image_files
from diffprune.errors import DataError

HIGHEST_PSNR = 100.0
"""What equal images count as, in dB, so that a mean over pairs stays finite; one step of 255 in one pixel of a grey
1024x1024 image is 108 dB, in every hundredth pixel 68 dB."""

_INDEX = re.compile(r"(\d+)$")


def by_index(folder: Path) -> dict[int, Path]:
    """Image index -> file, the index being the number a file's name ends with; raises DataError for doubts."""
    found: dict[int, Path] = {}
    for path in image_files(folder):
        match = _INDEX.search(path.stem)
        if match is None:
            raise DataError(f"{path} has no image index: pairs are matched by the number a name ends with")
        if int(match[1]) in found:
            raise DataError(f"{path} and {found[int(match[1])]} have the same image index")
        found[int(match[1])] = path
    return found


def pairs(images: Path, reference: Path, num: int | None = None) -> list[tuple[Path, Path]]:
    """Files with equal image index, by index, the first `num` of them (None: all).

    Raises DataError when either folder has images without a partner, or fewer than `num`.
    """
    first, second = by_index(images), by_index(reference)
    alone = sorted(first.keys() ^ second.keys())
    if alone:
        shown = ", ".join(map(str, alone[:5])) + (", ..." if len(alone) > 5 else "")
        raise DataError(
            f"{len(alone)} image indices are in only one of {images} ({len(first)} images) and "
            f"{reference} ({len(second)}): {shown}; sample both with the same num"
        )
    if num is not None and num > len(first):
        raise DataError(f"{images} holds {len(first)} images, num asks for {num}")
    return [(first[i], second[i]) for i in sorted(first)[:num]]


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity of each pair, (N,): 11-pixel Gaussian window, sigma 1.5, data range 1.

    images, reference: (N, C, H, W) in [0, 1]. Source: Wang et al. 2004, by torchmetrics.
    """
    value = structural_similarity_index_measure(
        images, reference, gaussian_kernel=True, sigma=1.5, kernel_size=11, data_range=1.0, reduction="none"
    )
    assert isinstance(value, Tensor)
    return value


def mse(images: Tensor, reference: Tensor) -> Tensor:
    """Mean squared error of each pair, (N,), for images in [0, 1]."""
    return torch.mean((images - reference) ** 2, dim=(1, 2, 3))


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair in dB, (N,), for images in [0, 1]; at most `HIGHEST_PSNR`."""
    value = peak_signal_noise_ratio(images, reference, data_range=1.0, dim=(1, 2, 3), reduction="none")
    return value.clamp(max=HIGHEST_PSNR)
