"""Inception metrics against pytorch-fid, clean-fid and torch-fidelity, with the same random weights."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cleanfid.fid
import numpy as np
import pytest
import pytorch_fid.fid_score
import pytorch_fid.inception
import torch
import torch_fidelity
from PIL import Image

import diffprune
from diffprune.evaluation.feature_statistics import ImageStatistics, Moments
from diffprune.evaluation.image_preparation import Preparation
from diffprune.evaluation.inception import Inception, embed, load_inception
from diffprune.evaluation.inception_features import extract_features, open_image_set
from diffprune.evaluation.inception_inputs import RESIZES
from diffprune.evaluation.inception_metrics import compare_statistics
from diffprune.options import EvaluateOptions
from diffprune.runs.accumulator import Accumulator
from tests.conftest import photos

CPU = torch.device("cpu")
Sets = tuple[Path, Path]


@pytest.fixture(scope="module")
def network(inception_file: Path) -> Iterator[Any]:
    """pytorch-fid's network. It shares the names of its parameters with torch-fidelity's, so one file serves both."""
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.setattr(pytorch_fid.inception, "load_state_dict_from_url", lambda *_, **__: torch.load(inception_file))
        yield pytorch_fid.inception.InceptionV3([3]).eval()


@pytest.fixture(scope="module")
def ours(inception_file: Path, photo_sets: Sets) -> list[ImageStatistics]:
    """Statistics of both sets by the legacy protocol."""
    options = {"metrics": ("fid", "sfid"), "inception_weights": inception_file, "batch_size": 2, "device": "cpu"}
    return [diffprune.stats(folder, **options) for folder in photo_sets]


def in_their_span(*features: np.ndarray) -> list[np.ndarray]:
    """Features in the few dimensions that they fill: distances between Gaussians do not change by it.

    Reference implementations take the root of the whole 2048 x 2048 product, which takes minutes.
    """
    basis = np.linalg.svd(np.concatenate(features), full_matrices=False)[2]
    return [some @ basis.T for some in features]


def reference_fid(ours: np.ndarray, theirs: np.ndarray) -> float:
    first, second = in_their_span(ours, theirs)
    return float(
        pytorch_fid.fid_score.calculate_frechet_distance(
            first.mean(0), np.cov(first, rowvar=False), second.mean(0), np.cov(second, rowvar=False)
        )
    )


PYTORCH_FID_DISP = r"ignore:The `disp` argument is deprecated:DeprecationWarning"
"""pytorch-fid calls scipy's sqrtm with it."""


def check_statistics(found: ImageStatistics, activations: np.ndarray) -> None:
    statistics = found.by_metric["fid"]
    np.testing.assert_allclose(statistics.mu.numpy(), activations.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(statistics.sigma.numpy(), np.cov(activations, rowvar=False), rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings(PYTORCH_FID_DISP)
def test_legacy_fid_equals_that_of_pytorch_fid(network: Any, ours: list[ImageStatistics], photo_sets: Sets) -> None:
    with torch.random.fork_rng():
        theirs = [
            pytorch_fid.fid_score.get_activations(sorted(f.iterdir()), network, num_workers=0) for f in photo_sets
        ]
    for found, activations in zip(ours, theirs, strict=True):
        check_statistics(found, activations)
    assert compare_statistics(("fid",), *ours)[0]["fid"] == pytest.approx(reference_fid(*theirs), rel=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings(PYTORCH_FID_DISP)
@pytest.mark.filterwarnings("ignore:Matrix is singular:scipy.linalg.LinAlgWarning")  # 3 images, 2048 features
def test_fid_equals_that_of_pytorch_fid_from_folder_to_number(
    inception_file: Path, photo_sets: Sets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pytorch_fid.inception, "load_state_dict_from_url", lambda *_, **__: torch.load(inception_file))
    folders = [str(folder) for folder in photo_sets]
    with torch.random.fork_rng():
        theirs = pytorch_fid.fid_score.calculate_fid_given_paths(folders, 3, "cpu", 2048, num_workers=0)
    fid = diffprune.evaluate(*folders, metrics=("fid",), inception_weights=inception_file, device="cpu")["fid"]
    assert fid == pytest.approx(theirs, rel=1e-3)


def test_clean_fid_equals_that_of_clean_fid(
    network: Any, inception_file: Path, ours: list[ImageStatistics], photo_sets: Sets
) -> None:
    """clean-fid's own network is a download; pytorch-fid's stands in, fed as clean-fid feeds its own."""
    network.resize_input = network.normalize_input = False
    with torch.random.fork_rng():
        theirs = cleanfid.fid.get_folder_features(
            str(photo_sets[0]),
            lambda x: network((x - 128) / 128)[0].flatten(1),
            num_workers=0,
            device=CPU,
            verbose=False,
        )
    network.resize_input = network.normalize_input = True
    found = diffprune.stats(photo_sets[0], inception_weights=inception_file, resize="clean", device="cpu")
    check_statistics(found, theirs)
    clean, legacy = (some.by_metric["fid"].mu.numpy() for some in (found, ours[0]))
    assert np.linalg.norm(clean - theirs.mean(0)) < 0.01 * np.linalg.norm(clean - legacy)


TORCH_FIDELITY = {
    "isc": True, "kid": True, "prc": True, "isc_splits": 2, "kid_subsets": 5, "kid_subset_size": 2, "rng_seed": 7,
    "prc_neighborhood": 1, "feature_extractor": "inception-v3-compat",
    "cuda": False, "cache": False, "verbose": False, "save_cpu_ram": True, "batch_size": 6,
}  # fmt: skip


def test_inception_score_kid_precision_and_recall_equal_those_of_torch_fidelity(
    inception_file: Path, photo_sets: Sets
) -> None:
    images, reference = map(str, photo_sets)
    with torch.random.fork_rng():
        theirs = torch_fidelity.calculate_metrics(
            input1=images, input2=reference, feature_extractor_weights_path=str(inception_file), **TORCH_FIDELITY
        )
    ours = diffprune.evaluate(
        images,
        reference,
        metrics=("inception_score", "kid", "precision", "recall"),
        inception_splits=2,
        kid_subsets=5,
        kid_subset_size=2,
        neighborhood=1,
        seed=7,
        inception_weights=inception_file,
        batch_size=2,
        device="cpu",
    )
    assert list(ours) == [
        "inception_score_mean", "inception_score_std", "kid_mean", "kid_std", "precision", "recall", "protocol",
    ]  # fmt: skip
    for name, theirs_name in (
        ("inception_score_mean", "inception_score_mean"),
        ("inception_score_std", "inception_score_std"),
        ("kid_mean", "kernel_inception_distance_mean"),
        ("kid_std", "kernel_inception_distance_std"),
        ("precision", "precision"),
        ("recall", "recall"),
    ):
        assert ours[name] == pytest.approx(theirs[theirs_name], rel=1e-4), name


def test_the_spatial_features_are_seven_channels_of_the_graphs_mixed_6(inception_file: Path) -> None:
    inception = load_inception(inception_file, CPU)
    seen = []
    block = inception.network.get_submodule("Mixed_6d.branch1x1")
    hook = block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    features = embed(inception, torch.rand(1, 3, 299, 299, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    hook.remove()
    assert {name: tuple(value.shape) for name, value in features.items()} == {
        "pool": (1, 2048), "spatial": (1, 2023), "logits": (1, 1008),
    }  # fmt: skip
    assert torch.equal(features["spatial"], seen[-1][:, :7].flatten(1))


def test_a_set_is_at_no_distance_from_itself_and_further_from_others(ours: list[ImageStatistics]) -> None:
    same, _ = compare_statistics(("fid", "sfid"), ours[0], ours[0])
    other, _ = compare_statistics(("fid", "sfid"), *ours)
    assert all(same[metric] < 1e-6 * other[metric] for metric in ("fid", "sfid"))


@pytest.mark.parametrize("resize", RESIZES)
def test_every_way_into_the_network_gives_its_size_and_range(resize: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 33, 3), dtype=np.uint8)
    image = RESIZES[resize](pixels)
    assert (image.shape, image.dtype) == ((3, 299, 299), torch.float32)
    assert -1 <= image.min() < -0.9
    assert 0.9 < image.max() <= 1
    flat = RESIZES[resize](np.full((20, 33, 3), 128, dtype=np.uint8))
    assert torch.allclose(flat, torch.full_like(flat, 2 * 128 / 255 - 1 if resize == "legacy" else 0.0), atol=1e-6)


@pytest.mark.usefixtures("quick_network")
def test_images_of_different_sizes_and_modes_go_together(tmp_path: Path) -> None:
    folder = photos(tmp_path / "mixed", 1, num=1)
    photos(folder / "larger", 2, num=1, size=(64, 50))
    Image.new("L", (16, 16), 77).save(folder / "grey.png")
    Image.new("RGBA", (16, 16), "red").save(folder / "see-through.png")
    assert diffprune.stats(folder, device="cpu").num_images == 4


@pytest.mark.parametrize("batch", [1, 7, 100])
@pytest.mark.parametrize("offset", [0.0, 1.0, 1e4])
def test_moments_equal_the_whole_but_for_less_than_the_rounding_of_the_features(batch: int, offset: float) -> None:
    exact = torch.randn(100, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + offset
    features = exact.float()
    moments = Moments("fid", 5, Accumulator("cpu"))
    for start in range(0, 100, batch):
        moments.add(features[start : start + batch])
    found, of_rounded = moments.statistics(100), features.double()
    assert torch.allclose(found.mu, of_rounded.mean(0), rtol=1e-14)
    lost = (found.sigma - torch.cov(of_rounded.T)).abs().max()
    assert lost < 0.001 * (torch.cov(of_rounded.T) - torch.cov(exact.T)).abs().max()


@pytest.mark.usefixtures("quick_network")
def test_only_the_metrics_that_need_them_keep_features(photo_sets: Sets) -> None:
    inception = Inception(torch.nn.ParameterList([torch.zeros(1)]), "weights")
    images = open_image_set(str(photo_sets[0]), 2, Preparation())
    options = EvaluateOptions(device="cpu")
    assert not extract_features(images, ("fid",), inception, options).by_layer
    found = extract_features(images, ("kid",), inception, options)
    assert found.statistics is None
    assert {layer: (kept.shape, kept.dtype) for layer, kept in found.by_layer.items()} == {
        "pool": ((2, 2048), torch.float32)
    }
