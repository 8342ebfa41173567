"""Metrics against other implementations and against known answers."""

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image

import diffprune
from diffprune.data.digits import digits, split
from diffprune.data.images import open_images
from diffprune.errors import DataError
from diffprune.evaluation.digit_classifier import load_classifier
from diffprune.evaluation.frechet import frechet_distance
from diffprune.evaluation.image_pairs import matched_pairs
from diffprune.evaluation.paired_metrics import mse, ssim


def gaussian(seed: int, num: int = 300, size: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return torch.randn(num, size, generator=generator, dtype=torch.float64) @ mixing + seed


def test_the_frechet_distance_equals_the_general_matrix_root() -> None:
    a, b = gaussian(1), gaussian(2)
    root = scipy.linalg.sqrtm(np.cov(a.numpy(), rowvar=False) @ np.cov(b.numpy(), rowvar=False)).real
    gap = (a.mean(0) - b.mean(0)).square().sum().item()
    expected = gap + torch.cov(a.T).trace().item() + torch.cov(b.T).trace().item() - 2 * np.trace(root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_the_frechet_distance_of_a_set_to_itself_is_zero_even_when_singular() -> None:
    flat = gaussian(1) @ torch.diag(torch.tensor([1.0, 1, 1, 0, 0, 0], dtype=torch.float64))
    assert frechet_distance(flat, flat) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(flat, flat + 2) == pytest.approx(6 * 4, rel=1e-6)


def test_equal_images_have_ssim_one_and_mse_zero() -> None:
    images = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(ssim(images, images), torch.ones(3))
    assert torch.equal(mse(images, images), torch.zeros(3))
    assert torch.allclose(mse(images, images + 0.5), torch.full((3,), 0.25))
    assert (ssim(images, 1 - images) < 0.5).all()


def write(folder: Path, names: dict[str, int]) -> Path:
    folder.mkdir()
    for name, value in names.items():
        Image.new("L", (16, 16), value).save(folder / name)
    return folder


def test_pairs_are_matched_by_index_and_never_by_order(tmp_path: Path) -> None:
    ours = write(tmp_path / "a", {"9.png": 9, "10.png": 10, "100.png": 100})
    theirs = write(tmp_path / "b", {"img_0009.png": 9, "img_0010.png": 10, "img_0100.png": 100})
    assert [(a.name, b.name) for a, b in matched_pairs(ours, theirs)] == [
        ("9.png", "img_0009.png"),
        ("10.png", "img_0010.png"),
        ("100.png", "img_0100.png"),
    ]
    assert diffprune.evaluate(ours, theirs, metrics=("mse",)) == {"mse": 0.0}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"0.png": 0}, "1 image indices are in only one"),
        ({"0.png": 0, "a.png": 0}, "no image index"),
        ({"0.png": 0, "00.png": 0}, "same image index"),
    ],
)
def test_doubtful_pairs_are_refused(names: dict[str, int], message: str, tmp_path: Path) -> None:
    reference = write(tmp_path / "reference", {"0.png": 0, "1.png": 0})
    with pytest.raises(DataError, match=message):
        diffprune.evaluate(write(tmp_path / "images", names), reference)


def test_the_shipped_classifier_knows_over_97_percent_of_the_test_digits() -> None:
    images, (_, test) = open_images("digits", (16, 16), 1), split()
    with torch.no_grad():
        found = load_classifier()(torch.stack([images[i] for i in test])).argmax(1)
    right = found == torch.tensor([digits()[1][i] for i in test])
    assert right.double().mean() > 0.97


def test_digits_are_nearer_to_digits_than_noise_is(image_folder: Path, tmp_path: Path) -> None:
    for i in range(64):
        digits()[0][i].save(tmp_path / f"{i}.png")
    near = diffprune.evaluate(tmp_path, "digits", metrics=("frechet_distance",))["frechet_distance"]
    far = diffprune.evaluate(image_folder, "digits", metrics=("frechet_distance",))["frechet_distance"]
    assert near < 0.2 * far


def test_one_image_is_too_few_for_a_distance(tmp_path: Path) -> None:
    folder = write(tmp_path / "one", {"0.png": 0})
    with pytest.raises(DataError, match="at least 2"):
        diffprune.evaluate(folder, "digits", metrics=("frechet_distance",))
