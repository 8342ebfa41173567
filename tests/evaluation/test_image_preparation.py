"""Images prepared before Inception: the same for both sides, written down, and refused where it differs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import diffprune
from diffprune.cli.main import main
from diffprune.data.presets import PRESETS, Preprocessing, preprocessing_of, read_preprocessing
from diffprune.errors import DataError, OptionError
from diffprune.evaluation.feature_statistics import read_statistics
from diffprune.evaluation.protocol import Protocol
from diffprune.options import ImageOptions
from tests.helpers.archives import noise

pytestmark = pytest.mark.usefixtures("quick_network")

CELEBA = "64x64, crop 57:185,25:153 of 218x178, shorter, bilinear, RGB"


def run(*words: object) -> int:
    return main([*map(str, words), "--device", "cpu"])


def answer(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    capsys.readouterr()
    assert run(*words, "--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert isinstance(value, dict)
    return value


def refusal(capsys: pytest.CaptureFixture[str], *words: object, status: int = 1) -> str:
    capsys.readouterr()
    assert run(*words) == status
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return printed.err


def written(folder: Path, pixels: np.ndarray) -> Path:
    folder.mkdir()
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{index:04d}.png")
    return folder


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """Three images as CelebA's aligned ones are."""
    return written(tmp_path / "faces", noise(3, 218, 178))


@pytest.fixture
def prepared(tmp_path: Path, faces: Path) -> Path:
    """The same, prepared before."""
    images = [PRESETS["celeba64"](Image.open(path)) for path in sorted(faces.iterdir())]
    return written(tmp_path / "prepared", np.stack([np.asarray(image) for image in images]))


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """Three images as a model for 64x64 draws them."""
    return written(tmp_path / "samples", noise(3, 64, 64, seed=1))


@pytest.fixture
def file(tmp_path: Path, faces: Path) -> Path:
    assert run("stats", faces, "--preset", "celeba64", "--out", tmp_path / "stats.npz") == 0
    return tmp_path / "stats.npz"


def test_statistics_by_a_preset_are_those_of_images_that_it_prepared(faces: Path, prepared: Path, file: Path) -> None:
    by_hand = diffprune.stats(prepared, device="cpu").by_metric["fid"]
    found = read_statistics(file)
    assert torch.equal(found.by_metric["fid"].sigma, by_hand.sigma)
    assert found.protocol is not None
    assert found.protocol.images == CELEBA
    assert found.details["options"]["preset"] == "celeba64"
    assert found.details["num_corrupt"] == 0


def test_samples_are_compared_with_statistics_of_a_preset_of_their_size_without_more_words(
    faces: Path, prepared: Path, samples: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = ("--metrics", "fid")
    plain = answer(capsys, "evaluate", samples, file, *metrics)
    assert plain["protocol"]["fid"]["images"] == CELEBA
    assert answer(capsys, "evaluate", samples, file, *metrics, "--preset", "celeba64") == plain
    assert answer(capsys, "evaluate", samples, faces, *metrics, "--preset", "celeba64") == plain
    unprepared = answer(capsys, "evaluate", samples, prepared, *metrics)
    assert unprepared["fid"] == plain["fid"]
    assert unprepared["protocol"]["fid"]["images"] == "native size, RGB"
    assert answer(capsys, "evaluate", file, samples, *metrics)["fid"] == pytest.approx(plain["fid"])
    assert answer(capsys, "evaluate", file, file, *metrics)["fid"] == pytest.approx(0, abs=1e-6)


def test_images_of_another_size_are_only_prepared_when_that_is_asked_for(
    faces: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("evaluate", faces, file, "--metrics", "fid")
    message = refusal(capsys, *words)
    assert "0000.png has 218x178 pixels, the statistics are of images prepared as 64x64, crop 57:185" in message
    assert answer(capsys, *words, "--preset", "celeba64")["fid"] == pytest.approx(0, abs=1e-6)
    large = written(tmp_path / "large", noise(3, 128, 128))
    assert "has 128x128 pixels" in refusal(capsys, "evaluate", large, file, "--metrics", "fid")


@pytest.mark.parametrize(
    "otherwise", [("--preset", "celeba64", "--filter", "lanczos"), ("--size", 64), ("--preset", "cifar10")]
)
def test_another_preparation_is_refused(
    otherwise: tuple[object, ...], samples: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal(capsys, "evaluate", samples, file, "--metrics", "fid", *otherwise)
    assert f"was computed by another protocol (images {CELEBA} instead of " in message
    assert "cannot be compared" in message


def test_statistics_at_native_size_refuse_a_preset(
    samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("stats", samples, "--out", tmp_path / "native.npz") == 0
    words = ("evaluate", samples, tmp_path / "native.npz", "--metrics", "fid")
    assert answer(capsys, *words)["protocol"]["fid"]["images"] == "native size, RGB"
    assert "images native size, RGB instead of 32x32" in refusal(capsys, *words, "--preset", "cifar10")


def test_both_sides_are_prepared_for_every_metric_of_features(
    faces: Path, samples: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--metrics", "kid", "--kid-subset-size", 2, "--kid-subsets", 3)
    found = answer(capsys, "evaluate", samples, faces, *more, "--preset", "celeba64")
    assert found["kid_mean"] == answer(capsys, "evaluate", samples, prepared, *more)["kid_mean"]
    assert found["protocol"]["kid"]["images"] == CELEBA


def test_what_does_not_suit_is_found_before_the_work(samples: Path, tmp_path: Path) -> None:
    large = written(tmp_path / "large", noise(2, 100, 100))
    with pytest.raises(
        DataError, match=r"0000.png has 100x100 pixels. Rows 57:185 .* are cropped from images of 218x178"
    ):
        diffprune.stats(large, preset="celeba64", device="cpu")
    with pytest.raises(OptionError, match="preset: missing; crop, filter need the size to resize to"):
        diffprune.stats(large, crop="square", filter="box", device="cpu")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_corrupt_images_are_left_out_and_counted(
    num_workers: int, samples: Path, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    (samples / "0001.png").write_bytes((samples / "0001.png").read_bytes()[:60])
    out = tmp_path / "stats.npz"
    words = ("stats", samples, "--num-workers", num_workers, "--batch-size", 1, "--out", out)
    assert "0001.png is not a readable image" in refusal(capsys, *words)
    found = answer(capsys, *words, "--on-corrupt", "skip")
    assert (found["num_images"], found["num_corrupt"]) == (2, 1)
    assert read_statistics(out).details["num_corrupt"] == 1
    assert "skipped: " in caplog.text
    assert "0001.png is not a readable image" in caplog.text
    words = ("evaluate", samples, faces, "--metrics", "fid", "kid", "--on-corrupt", "skip", "--preset", "celeba64")
    found = answer(capsys, *words, "--kid-subset-size", 2)
    assert found["num_corrupt"] == 1
    assert {found["protocol"][metric]["num_images"] for metric in ("fid", "kid")} == {2}
    assert "kid needs at least 3" in refusal(capsys, *words, "--kid-subset-size", 3)
    (samples / "0000.png").write_bytes(b"")
    assert "1 of 3 images are readable" in refusal(capsys, *words, "--kid-subset-size", 2)


BY_OPTIONS = [
    ImageOptions(size=8, crop="square"), ImageOptions(size=8, crop="1:7,0:6", fit="exact", filter="box"),
    ImageOptions(preset="celeba64", size=32, filter="lanczos"), ImageOptions(preset="imagenet256", crop="whole"),
]  # fmt: skip


@pytest.mark.parametrize("by", [*PRESETS.values(), *map(preprocessing_of, BY_OPTIONS)], ids=str)
def test_a_preprocessing_is_read_back_from_what_a_protocol_says_of_it(by: Preprocessing) -> None:
    assert read_preprocessing(str(by)) == by


@pytest.mark.parametrize("text", ["", "64x64", "8x8, crop middle, shorter, box", "8x8, crop whole, shorter, nearest"])
def test_a_preparation_that_is_not_known_is_refused(
    text: str, samples: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=r".+"):
        read_preprocessing(text)
    with np.load(file) as arrays:
        known = dict(arrays)
    facts = json.loads(str(known["protocol"])) | {"images": f"{text}, RGB"}
    facts.pop("hash")
    np.savez(file, **{**known, "protocol": json.dumps(Protocol(**facts).as_dict())})
    assert "compute them again" in refusal(capsys, "evaluate", samples, file, "--metrics", "fid")
