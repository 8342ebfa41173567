"""Statistics files: to and from pytorch-fid, protocols, and what is refused."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_fid.fid_score
import torch
from PIL import Image

import diffprune
from diffprune.cli.main import main
from diffprune.errors import DataError
from diffprune.evaluation.feature_statistics import read_statistics
from tests.conftest import photos

Sets = tuple[Path, Path]

pytestmark = pytest.mark.usefixtures("quick_network")


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
    assert printed.out == ""
    assert "Traceback" not in printed.err
    return printed.err


@pytest.fixture
def file(tmp_path: Path, photo_sets: Sets) -> Path:
    assert run("stats", photo_sets[1], "--metrics", "fid", "sfid", "--out", tmp_path / "stats.npz") == 0
    return tmp_path / "stats.npz"


def test_statistics_stand_in_for_the_images_they_are_of(
    file: Path, photo_sets: Sets, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = ("--metrics", "fid", "sfid")
    by_images = answer(capsys, "evaluate", *photo_sets, *metrics)
    assert answer(capsys, "evaluate", photo_sets[0], file, *metrics) == by_images
    assert answer(capsys, "evaluate", file, photo_sets[0], *metrics)["fid"] == pytest.approx(by_images["fid"])
    assert answer(capsys, "evaluate", file, file, "--metrics", "fid")["fid"] == pytest.approx(0, abs=1e-6)


def test_the_protocol_stands_beside_each_number(photo_sets: Sets, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("evaluate", *photo_sets, "--metrics", "fid", "kid", "--kid-subset-size", 2)
    protocol = answer(capsys, *words)["protocol"]
    assert {k: protocol["fid"][k] for k in ("resize", "layer", "num_images", "num_reference_images")} == {
        "resize": "legacy", "layer": "pool", "num_images": 3, "num_reference_images": 3,
    }  # fmt: skip
    assert protocol["kid"]["resize"] == "tensorflow"
    assert (protocol["kid"]["subset_size"], protocol["kid"]["seed"]) == (2, 2020)
    assert "below 2048" in protocol["fid"]["note"]
    assert answer(capsys, *words)["protocol"] == protocol
    for change in (("--resize", "clean"), ("--num", 2), ("--inception-weights", "others.pth")):
        assert answer(capsys, *words, *change)["protocol"]["fid"]["hash"] != protocol["fid"]["hash"]
    assert run(*words) == 0
    printed = capsys.readouterr().out
    assert f"FID: protocol {protocol['fid']['hash']}: " in printed
    assert "KID std" in printed


def test_pytorch_fid_reads_our_statistics(file: Path) -> None:
    mu, sigma = pytorch_fid.fid_score.compute_statistics_of_path(str(file), None, 1, 2048, "cpu")
    ours = read_statistics(file)
    np.testing.assert_array_equal(mu, ours.by_metric["fid"].mu.numpy())
    np.testing.assert_array_equal(sigma, ours.by_metric["fid"].sigma.numpy())
    assert ours.num_images == 3


def test_statistics_of_pytorch_fid_are_accepted_and_the_number_says_so(
    file: Path, photo_sets: Sets, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = read_statistics(file).by_metric["fid"]
    foreign = file.with_name("foreign.npz")
    np.savez_compressed(foreign, mu=ours.mu.numpy(), sigma=ours.sigma.numpy())
    known = answer(capsys, "evaluate", photo_sets[0], file, "--metrics", "fid")
    found = answer(capsys, "evaluate", photo_sets[0], foreign, "--metrics", "fid")
    assert found["fid"] == known["fid"]
    assert found["protocol"]["fid"]["reference"] == "protocol unknown"
    assert found["protocol"]["fid"]["num_reference_images"] is None
    assert found["protocol"]["fid"]["hash"] != known["protocol"]["fid"]["hash"]
    assert "fid, not for sfid" in refusal(capsys, "evaluate", photo_sets[0], foreign, "--metrics", "sfid")


def test_statistics_of_another_protocol_are_refused(
    file: Path, photo_sets: Sets, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("evaluate", photo_sets[0], file, "--metrics", "fid")
    message = refusal(capsys, *words, "--resize", "clean")
    assert "resize legacy instead of clean" in message
    assert "cannot be compared" in message
    assert "weights 0123456789abcdef instead of others" in refusal(capsys, *words, "--inception-weights", "others.pth")
    assert run("stats", photo_sets[0], "--resize", "clean", "--out", tmp_path / "clean.npz") == 0
    assert "another protocol" in refusal(capsys, "evaluate", tmp_path / "clean.npz", file, "--metrics", "fid")


def test_metrics_of_every_image_need_the_images(
    file: Path, photo_sets: Sets, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("evaluate", photo_sets[0], file, "--kid-subset-size", 2, "--metrics", "kid")
    assert "give the images themselves" in refusal(capsys, *words)
    assert "num chooses among images" in refusal(
        capsys, "evaluate", file, photo_sets[0], "--metrics", "fid", "--num", 2
    )


def test_finished_statistics_are_kept_and_others_never_replaced_unasked(
    file: Path, photo_sets: Sets, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("stats", photo_sets[1], "--metrics", "fid", "sfid", "--out", file)
    before = file.stat().st_mtime_ns
    assert run(*words) == 0
    assert file.stat().st_mtime_ns == before
    assert run(*words, "--batch-size", 1) == 0
    assert file.stat().st_mtime_ns == before
    assert "(--num: was the default, is 2); add --overwrite" in refusal(capsys, *words, "--num", 2)
    assert file.stat().st_mtime_ns == before
    assert answer(capsys, *words, "--num", 2, "--overwrite")["num_images"] == 2
    made = file.stat().st_mtime_ns
    assert answer(capsys, *words, "--num", 2, "--overwrite")["num_images"] == 2
    assert file.stat().st_mtime_ns > made
    foreign = file.with_name("foreign.npz")
    np.savez(foreign, mu=np.zeros(2048), sigma=np.eye(2048))
    for place in (foreign, file.with_name("notes.npz")):
        place.write_bytes(place.read_bytes() if place.exists() else b"notes")
        before_bytes = place.read_bytes()
        assert "was not made by diffprune" in refusal(capsys, *words[:-1], place, "--overwrite")
        assert place.read_bytes() == before_bytes
    assert "not an .npz file" in refusal(capsys, *words[:-1], file.with_suffix(".json"))


def damaged(path: Path, **changes: Any) -> Path:
    arrays = {"mu": np.zeros(2048), "sigma": np.eye(2048), **changes}
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


DAMAGED: dict[str, tuple[dict[str, Any], str]] = {
    "no covariance": ({"sigma": None}, "need mu and sigma"),
    "another layer": ({"mu": np.zeros(64), "sigma": np.eye(64)}, "of another layer or network"),
    "covariance of a vector": ({"sigma": np.zeros(2048)}, "covariance of"),
    "not finite": ({"mu": np.full(2048, np.nan)}, "not finite"),
    "no JSON": ({"protocol": "{", "num_images": 3, "details": "{}"}, "cannot be read as statistics"),
    "half a protocol": ({"protocol": '{"resize": "clean"}', "num_images": 3, "details": "{}"}, "expected the facts"),
    "words": ({"mu": np.array(["a"] * 2048)}, "cannot be read as statistics"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_statistics_are_refused(kind: str, tmp_path: Path) -> None:
    changes, message = DAMAGED[kind]
    with pytest.raises(DataError, match=message):
        read_statistics(damaged(tmp_path / "file.npz", **changes))


def test_a_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    path = damaged(tmp_path / "file.npz")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match="cannot be read as statistics"):
        read_statistics(path)
    with pytest.raises(DataError, match="no file"):
        read_statistics(tmp_path / "nowhere.npz")


def test_pickles_in_statistics_are_not_opened(tmp_path: Path) -> None:
    trap = np.array([Trap(tmp_path / "sprung")], dtype=object)
    assert pickle.dumps(trap)
    with pytest.raises(DataError, match="cannot be read as statistics"):
        read_statistics(damaged(tmp_path / "file.npz", mu=trap))
    assert not (tmp_path / "sprung").exists()


FEW = {
    "fid": ("fid needs at least 2 (a covariance)", ()),
    "frechet_distance": ("frechet_distance needs at least 2 (a covariance)", ()),
    "kid": ("kid needs at least 1000 (--kid-subset-size)", ()),
    "precision": ("precision needs at least 4 (neighborhood + 1)", ()),
    "recall": ("recall needs at least 3 (neighborhood + 1)", ("--neighborhood", 2)),
    "inception_score": ("inception_score needs at least 10 (--inception-splits)", ()),
}


@pytest.mark.parametrize("metric", FEW)
def test_too_few_images_are_an_error_that_says_how_many(
    metric: str, photo_sets: Sets, capsys: pytest.CaptureFixture[str]
) -> None:
    message, more = FEW[metric]
    words = ("evaluate", photo_sets[0], photo_sets[1], "--metrics", metric, "--num", 1, *more)
    found = refusal(capsys, *words)
    assert f"holds 1 image: {message}" in found or f"holds 3 images: {message}" in found
    assert "holds 3 images, but num is 9; set --num to at most 3" in refusal(capsys, *words[: -len(more) - 1], 9)


def test_images_in_memory_have_the_statistics_and_metrics_of_their_files(photo_sets: Sets, tmp_path: Path) -> None:
    images = [[Image.open(path) for path in sorted(folder.iterdir())] for folder in photo_sets[:2]]
    by_file = diffprune.stats(photo_sets[0], device="cpu")
    in_memory = diffprune.stats(images[0], device="cpu", out=tmp_path / "stats.npz")
    assert torch.equal(by_file.by_metric["fid"].mu, in_memory.by_metric["fid"].mu)
    assert repr(in_memory).startswith(f"ImageStatistics(fid, {len(images[0])} images, protocol ")
    options: dict[str, Any] = {"metrics": ["fid", "kid"], "kid_subset_size": 2, "device": "cpu"}
    assert diffprune.evaluate(*images, **options) == diffprune.evaluate(*photo_sets[:2], **options)


def test_statistics_of_one_image_are_refused(photo_sets: Sets, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least 2"):
        diffprune.stats(photo_sets[0], num=1)


def test_what_is_wrong_with_one_metric_is_found_before_the_work_on_another(
    photo_sets: Sets, monkeypatch: pytest.MonkeyPatch
) -> None:
    worked = []
    monkeypatch.setattr("diffprune.evaluation.measure_images.PLAIN", {"ssim": lambda *_: worked.append(1)})
    with pytest.raises(DataError, match="kid needs at least 1000"):
        diffprune.evaluate(*photo_sets, metrics=("ssim", "kid"))
    assert not worked


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_image_that_cannot_be_read_is_named(
    num_workers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = photos(tmp_path / "images", 1)
    (folder / "0001.png").write_bytes((folder / "0001.png").read_bytes()[:60])
    message = refusal(capsys, "stats", folder, "--num-workers", num_workers, "--out", tmp_path / "stats.npz")
    assert "0001.png is not a readable image" in message
    assert not (tmp_path / "stats.npz").exists()


def test_worker_processes_change_nothing_but_rounding(photo_sets: Sets) -> None:
    alone, together = (diffprune.stats(photo_sets[0], num_workers=n, batch_size=2, device="cpu") for n in (0, 2))
    for metric, found in alone.by_metric.items():
        assert torch.allclose(found.sigma, together.by_metric[metric].sigma, rtol=1e-4, atol=1e-3)
    resized = diffprune.stats(photo_sets[0], num_workers=2, resize="clean", device="cpu")
    assert torch.equal(
        resized.by_metric["fid"].mu, diffprune.stats(photo_sets[0], resize="clean", device="cpu").by_metric["fid"].mu
    )


def test_a_metric_of_images_alone_takes_no_reference(photo_sets: Sets, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("evaluate", photo_sets[0], "--metrics", "inception_score", "--inception-splits", 1)
    assert answer(capsys, *words)["inception_score_mean"] >= 1
    assert "fid compare with a reference" in refusal(capsys, "evaluate", photo_sets[0], "--metrics", "fid", status=2)
