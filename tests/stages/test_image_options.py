"""How stages prepare their images: by one preset, found wrong before work, written into run.json."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffprune.cli.main import main
from tests.helpers.archives import noise


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eleven images of 20x30 pixels and one that cannot be read."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, pixels in enumerate(noise(12, 20, 30)):
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    (folder / "05.png").write_bytes((folder / "05.png").read_bytes()[:100])
    return folder


TINY = ["--steps", "2", "--batch-size", "4", "--tracker", "none", "--device", "cpu"]


def test_training_leaves_corrupt_images_out_and_says_how_many(
    photos: Path, pipeline_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["finetune", str(pipeline_folder), "--data", str(photos), *TINY, "--out", str(tmp_path / "out")]
    preparing = ["--on-corrupt", "skip", "--crop", "2:18,4:20", "--filter", "lanczos", "--num-workers", "1"]
    assert main([*words, *preparing]) == 0
    assert "05.png is not a readable image" in caplog.text
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (record["result"]["num_images"], record["result"]["num_corrupt"]) == (11, 1)
    assert (record["options"]["preset"], record["options"]["filter"]) == ("model", "lanczos")
    box = {"top": 2, "bottom": 18, "left": 4, "right": 20, "image_size": None}
    assert record["result"]["preprocessing"] == {
        "size": [16, 16], "crop": box, "fit": "shorter", "filter": "lanczos",
    }  # fmt: skip


def test_a_corrupt_image_in_a_worker_is_one_clear_line(
    photos: Path, pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["finetune", str(pipeline_folder), "--data", str(photos), *TINY, "--steps", "4", "--num-workers", "1"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err
    assert "05.png is not a readable image" in message
    assert "Traceback" not in message


def test_scores_are_made_of_images_prepared_by_the_options(photos: Path, pipeline_folder: Path, tmp_path: Path) -> None:
    for i, pixels in enumerate(noise(12, 20, 30)):
        Image.fromarray(pixels[2:18, 4:20]).convert("L").save(photos / f"{i:02d}.png")
    cut = shutil.copytree(photos, tmp_path / "cut")
    for i, pixels in enumerate(noise(12, 20, 30)):
        Image.fromarray(pixels).save(photos / f"{i:02d}.png")
    plans = []
    for folder, crop in ((cut, "whole"), (photos, "2:18,4:20"), (photos, "square")):
        words = ["plan", str(pipeline_folder), "--criterion", "taylor", "--num-calibration-images", "4"]
        out = tmp_path / f"{len(plans)}.json"
        assert main([*words, "--data", str(folder), "--crop", crop, "--out", str(out), "--device", "cpu"]) == 0
        plans.append(json.loads(out.read_text())["details"]["losses"])
    assert plans[0] == plans[1]
    assert not np.allclose(plans[0], plans[2], rtol=1e-6)


@pytest.mark.parametrize("command", ["plan", "prune", "finetune"])
def test_a_preset_of_another_size_is_found_before_work(
    command: str, photos: Path, pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [command, str(pipeline_folder), "--data", str(photos), "--preset", "cifar10"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "preset: cifar10 makes images of 32x32 pixels, the model has 16x16" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*words[:-1], "cifar", "--out", str(tmp_path / "out")]) == 2
    assert "did you mean 'cifar10'?" in capsys.readouterr().err
