"""The handwritten digits that ship with scikit-learn: 1,797 real scans, here as 16x16 grey images."""

import functools
from typing import Any

import numpy as np
from PIL import Image

SIZE = 16
NUM_TEST = 360


@functools.cache
def digits() -> tuple[list[Image.Image], list[int]]:
    """All 1,797 images (8x8 scans scaled to 16x16, bilinear) and their labels.

    Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI 1998 (CC BY 4.0).
    """
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    scans = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    images = [Image.fromarray(scan).resize((SIZE, SIZE), Image.Resampling.BILINEAR) for scan in scans]
    return images, [int(label) for label in bunch.target]


def split() -> tuple[list[int], list[int]]:
    """Indices of the training and the test images of the digit classifier; the same at every call."""
    order = np.random.default_rng(0).permutation(len(digits()[0])).tolist()
    return order[NUM_TEST:], order[:NUM_TEST]
