"""Analyses: measured on pruned models, resumable, and refused where they make no sense."""

from pathlib import Path

import pytest
from PIL import Image

from diffprune.cli.main import main
from diffprune.runs.atomic_files import read_json

SMALL = ["--data", "digits", "--num-calibration-images", "4", "--ratio", "0.5", "--num", "4", "--steps", "3"]


def analyze(model: Path, out: Path, *more: str) -> int:
    return main(["analyze", "stages", str(model), *SMALL, "--out", str(out), *more])


def test_each_stage_of_timesteps_gives_a_pruned_model(pipeline_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "stages"
    assert analyze(pipeline_folder, out, "--num-stages", "3") == 0
    rows = read_json(out / "run.json")["result"]["stages"]
    assert [(row["first_timestep"], row["last_timestep"]) for row in rows] == [(0, 6), (7, 13), (14, 19)]
    assert all(-1 <= row["ssim"] < 1 and row["mse"] > 0 and 0 < row["relative_loss"] <= 1 for row in rows)
    assert max(row["relative_loss"] for row in rows) == 1
    plans = [read_json(out / f"stage-0{i}" / "plan.json") for i in range(3)]
    assert [plan["details"]["timesteps_used"] for plan in plans] == [7, 7, 6]
    assert plans[0]["groups"] != plans[2]["groups"]
    assert len(list((out / "stage-02").glob("*.png"))) == len(list((out / "original").glob("*.png"))) == 4
    assert read_json(out / "run.json")["inputs"]["data"]["source"] == "digits"
    with Image.open(out / "stages.png") as plot:
        assert plot.size[0] > 300


def test_an_interrupted_analysis_is_continued(
    pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "stages"
    with monkeypatch.context() as broken:
        broken.setattr("diffprune.stages.analyze_stages.quality_by_stage", lambda rows: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            analyze(pipeline_folder, out, "--num-stages", "2")
    kept = {
        path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix == ".png" or path.name == "plan.json"
    }
    assert len(kept) == 3 * 4 + 2
    assert analyze(pipeline_folder, out, "--num-stages", "2") == 0
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--num-stages", "21"], "got 21, the scores use 20 timesteps; give at most 20"),
        (["--criterion", "magnitude"], "does not depend on timesteps"),
        (["--num-stages", "1"], "--num-stages: got '1'"),
    ],
)
def test_what_makes_no_sense_is_refused(
    more: list[str], message: str, pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert analyze(pipeline_folder, tmp_path / "out", *more) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_kind_of_analysis_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", "digits"]) == 2
    assert main(["analyze"]) == 2
    assert "did you mean 'analyze stages'?" in capsys.readouterr().err
