"""The handwritten digits of scikit-learn: 1,797 scans as 16x16 grayscale images."""

import functools
from typing import Any

import numpy as np
from PIL import Image

SIZE = 16
NUM_TEST = 360


@functools.cache
def digits() -> tuple[list[Image.Image], list[int]]:
    """Return all 1,797 images (8x8 scans resized to 16x16, bilinear) and their labels.

    Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI 1998 (CC BY 4.0).
    """
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    scans = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    images = [Image.fromarray(scan).resize((SIZE, SIZE), Image.Resampling.BILINEAR) for scan in scans]
    return images, [int(label) for label in bunch.target]


def split() -> tuple[list[int], list[int]]:
    """Return the indices of the training and test images of the digit classifier; every call returns the same."""
    order = np.random.default_rng(0).permutation(len(digits()[0])).tolist()
    return order[NUM_TEST:], order[:NUM_TEST]
