"""Sensitivity of the parts of a model, and plans held against each other."""

from pathlib import Path

import pytest
from PIL import Image

from diffprune.cli.main import main
from diffprune.runs.atomic_files import read_json

SMALL = ["--data", "digits", "--num-calibration-images", "4", "--num-timesteps", "2"]


def analyze(model: Path, out: Path, *more: str) -> int:
    return main(["analyze", "sensitivity", str(model), *SMALL, "--out", str(out), *more])


def test_each_block_is_pruned_alone_and_more_hurts_more(pipeline_folder: Path, tmp_path: Path) -> None:
    assert analyze(pipeline_folder, tmp_path / "out", "--ratios", "0.25", "0.75") == 0
    rows = read_json(tmp_path / "out" / "run.json")["result"]["parts"]
    parts = list(dict.fromkeys(row["part"] for row in rows))
    assert "up_blocks.0.resnets.0" in parts
    assert len(rows) == 2 * len(parts)
    errors = {(row["part"], row["ratio"]): row["error"] for row in rows}
    assert all(error >= 0 for error in errors.values())
    assert sum(errors[part, 0.75] for part in parts) > sum(errors[part, 0.25] for part in parts) > 0
    with Image.open(tmp_path / "out" / "sensitivity.png") as plot:
        assert plot.size[0] > 300


def test_an_interrupted_analysis_goes_on_where_it_was(
    pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffprune.stages import analyze_sensitivity as sensitivity

    measured: list[float] = []
    original = sensitivity._error

    def counting(*args: object) -> float:
        measured.append(original(*args))
        return measured[-1]

    def stopping(*args: object) -> float:
        if len(measured) == 3:
            raise KeyboardInterrupt
        return counting(*args)

    whole = ["--by", "group", "--ratios", "0.5"]
    with monkeypatch.context() as broken:
        broken.setattr(sensitivity, "_error", stopping)
        assert analyze(pipeline_folder, tmp_path / "out", *whole) == 130
    monkeypatch.setattr(sensitivity, "_error", counting)
    assert analyze(pipeline_folder, tmp_path / "out", *whole) == 0
    rows = read_json(tmp_path / "out" / "run.json")["result"]["parts"]
    assert len(measured) == len(rows) == len({row["part"] for row in rows})
    assert [row["error"] for row in rows] == measured


def test_two_plans_are_held_against_each_other(pipeline_folder: Path, tmp_path: Path) -> None:
    for name, seed, ratio in (("a", 0, 0.5), ("b", 0, 0.25), ("c", 1, 0.5)):
        words = ["--criterion", "random", "--seed", str(seed), "--ratio", str(ratio)]
        assert main(["plan", str(pipeline_folder), *words, "--out", str(tmp_path / f"{name}.json")]) == 0

    def compared(*names: str) -> dict[str, float]:
        out = tmp_path / "-".join(names)
        assert main(["analyze", "plan", *(str(tmp_path / f"{n}.json") for n in names), "--out", str(out)]) == 0
        assert (out / "plan.png").stat().st_size > 1000
        result: dict[str, float] = read_json(out / "run.json")["result"]
        return result

    assert compared("a", "a")["agreement"] == 1
    assert 0.5 < compared("a", "b")["agreement"] < 1
    assert compared("a", "c")["agreement"] < compared("a", "b")["agreement"]
    assert "agreement" not in compared("a")


def test_plans_for_different_models_are_refused(
    pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, model in (("a", str(pipeline_folder)), ("b", "ddpm-digits")):
        assert main(["plan", model, "--criterion", "random", "--out", str(tmp_path / f"{name}.json")]) == 0
    assert main(["analyze", "plan", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--out", str(tmp_path)]) == 1
    assert "plans for different models" in capsys.readouterr().err


def test_another_analysis_of_plans_is_replaced_where_that_is_asked_for(
    pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, ratio in (("a", "0.5"), ("b", "0.25")):
        words = ["--criterion", "random", "--ratio", ratio, "--out", str(tmp_path / f"{name}.json")]
        assert main(["plan", str(pipeline_folder), *words]) == 0
    analyze_plan = ["analyze", "plan", "--out", str(tmp_path / "out")]
    assert main([*analyze_plan, str(tmp_path / "a.json")]) == 0
    assert main([*analyze_plan, str(tmp_path / "b.json")]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main([*analyze_plan, str(tmp_path / "b.json"), "--overwrite"]) == 0
    assert read_json(tmp_path / "out" / "run.json")["inputs"]["plan"]["source"] == str(tmp_path / "b.json")


@pytest.mark.parametrize("option", ["--ratio", "--keep-macs", "--rounds", "--ignore", "--min-units", "--ranking"])
def test_sensitivity_refuses_options_of_a_budget(
    option: str, pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert analyze(pipeline_folder, tmp_path / "out", option, "1") == 2
    assert f"no argument '{option}'" in capsys.readouterr().err
