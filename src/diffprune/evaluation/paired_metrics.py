"""SSIM, MSE and PSNR of image pairs."""

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

HIGHEST_PSNR = 100.0
"""PSNR of equal images in dB, so that a mean over pairs is finite.

One step of 255 in one pixel of a gray 1024x1024 image is 108 dB; one step in every hundredth pixel is 68 dB.
"""


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Return the structural similarity of each pair, (N,): 11-pixel Gaussian window, sigma 1.5, data range 1.

    images, reference: (N, C, H, W) in [0, 1]. Source: Wang et al. 2004, computed by torchmetrics.
    """
    value = structural_similarity_index_measure(
        images, reference, gaussian_kernel=True, sigma=1.5, kernel_size=11, data_range=1.0, reduction="none"
    )
    assert isinstance(value, Tensor)
    return value


def mse(images: Tensor, reference: Tensor) -> Tensor:
    """Return the mean squared error of each pair, (N,), for images (N, C, H, W) in [0, 1]."""
    return torch.mean((images - reference) ** 2, dim=(1, 2, 3))


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Return the PSNR of each pair in dB, (N,), for images (N, C, H, W) in [0, 1]; at most `HIGHEST_PSNR`."""
    value = peak_signal_noise_ratio(images, reference, data_range=1.0, dim=(1, 2, 3), reduction="none")
    return value.clamp(max=HIGHEST_PSNR)
