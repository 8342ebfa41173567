"""Recipes: one file walks the whole road, and what is finished is not done again."""

import json
import shutil
from pathlib import Path

import pytest

from diffprune.cli.main import main
from diffprune.errors import OptionError
from diffprune.options.recipe import Recipe, read_recipe
from diffprune.options.shipped_recipes import shipped_recipes
from diffprune.runs.atomic_files import read_json
from diffprune.stages.report_stage import report_stage

SMALL = """
name: small
model: {model}
data: {data}
plan: {{ratio: {ratio}, num_calibration_images: 4, timestep_stride: 5}}
finetune: {{steps: 2, batch_size: 4, tracker: none}}
sample: {{num: 4, steps: 2, batch_size: 4}}
evaluate: {{metrics: [ssim, mse, frechet_distance]}}
"""


def walk(recipe: Path, out: Path) -> None:
    assert main(["run", str(recipe), "--out", str(out)]) == 0


def written(out: Path) -> dict[str, int]:
    return {str(p.relative_to(out)): p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def road(pipeline_folder: Path, image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `recipe.yaml` and, walked, its `out`."""
    folder = tmp_path_factory.mktemp("road")
    (folder / "recipe.yaml").write_text(SMALL.format(model=pipeline_folder, data=image_folder, ratio=0.5))
    with pytest.MonkeyPatch.context() as there:
        there.chdir(folder)
        walk(Path("recipe.yaml"), Path("out"))
    return folder


@pytest.fixture
def walked(road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, to be in and to change."""
    shutil.copytree(road, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_recipe_walks_the_road_and_keeps_what_is_finished(walked: Path) -> None:
    recipe, out = Path("recipe.yaml"), Path("out")
    rows = {p.parent.name for p in (out / "samples").rglob("run.json")}
    assert rows == {"original", "pruned", "recovered"}
    assert len(list((out / "samples" / "recovered").glob("*.png"))) == 4
    metrics = json.loads((out / "metrics" / "pruned" / "pairs" / "run.json").read_text())["result"]
    assert set(metrics) == {"ssim", "mse"}
    page = (out / "report.html").read_text()
    for expected in ("original", "pruned", "recovered", "SSIM", "Fréchet distance", "Parameters per block"):
        assert expected in page

    before = written(out)
    walk(recipe, out)
    assert {name for name, when in written(out).items() if before.get(name) != when} == {"report.html"}

    recipe.write_text(recipe.read_text().replace("ratio: 0.5", "ratio: 0.25"))
    walk(recipe, out)
    changed = {name for name, when in written(out).items() if before.get(name) != when}
    assert {"plan/plan.json", "pruned/run.json", "recovered/run.json", "samples/pruned/000000.png"} <= changed
    assert not {name for name in changed if name.startswith("samples/original")}


def test_a_recipe_may_begin_with_training(image_folder: Path, tmp_path: Path, pipeline_folder: Path) -> None:
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    recipe.write_text(
        f"name: scratch\ndata: {image_folder}\n"
        f"train: {{architecture: {pipeline_folder / 'unet' / 'config.json'}, steps: 2, batch_size: 4, tracker: none}}\n"
        "plan: {ratio: 0.5, criterion: magnitude}\n"
        "sample: {num: 2, steps: 1}\n"
    )
    walk(recipe, out)
    assert {p.parent.name for p in out.rglob("model_index.json")} == {"trained", "pruned"}
    assert (out / "report.html").exists()
    assert main(["train", str(recipe), "--out", str(tmp_path / "trained")]) == 0
    assert main(["train", str(recipe), "--steps", "3", "--out", str(tmp_path / "trained")]) == 2


JUDGED = """
name: judged
model: {model}
reference: {reference}
sample: {{num: 3, steps: 1}}
evaluate: {{metrics: [ssim, fid, inception_score], inception_splits: 1, device: cpu}}
"""


@pytest.mark.usefixtures("quick_network")
def test_sets_are_judged_against_statistics_and_protocols_never_mix(
    pipeline_folder: Path, photo_sets: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out, statistics = tmp_path / "recipe.yaml", tmp_path / "out", tmp_path / "stats.npz"
    assert main(["stats", str(photo_sets[1]), "--device", "cpu", "--out", str(statistics)]) == 0
    recipe.write_text(JUDGED.format(model=pipeline_folder, reference=statistics))
    walk(recipe, out)
    metrics = {
        kind: read_json(out / "metrics" / "original" / kind / "run.json")["result"] for kind in ("statistics", "alone")
    }
    assert metrics["statistics"].keys() == {"fid", "protocol"}
    protocol = metrics["statistics"]["protocol"]["fid"]["hash"]
    page = (out / "report.html").read_text()
    assert '<th scope="col">FID</th>' in page
    assert '<th scope="col">inception score</th>' in page
    assert '<th scope="col">protocol</th>' not in page
    assert f"{protocol}: network" in page

    images = str(out / "samples" / "original")
    words = ["evaluate", images, str(photo_sets[1]), "--device", "cpu", "--metrics", "fid", "--resize", "clean"]
    assert main([*words, "--out", str(tmp_path / "clean")]) == 0
    capsys.readouterr()
    assert main(["report", str(out), str(tmp_path / "clean"), "--out", str(tmp_path / "report.html")]) == 1
    message = capsys.readouterr().err
    assert "different protocols (resize: legacy, clean)" in message
    assert not (tmp_path / "report.html").exists()


def test_metrics_of_sets_need_data_or_a_reference(pipeline_folder: Path, tmp_path: Path) -> None:
    text = JUDGED.format(model=pipeline_folder, reference="stats.npz").replace("reference: stats.npz\n", "")
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(OptionError, match="fid compares with the data"):
        read_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("path", shipped_recipes().values(), ids=lambda p: p.stem)
def test_every_shipped_recipe_is_valid_and_says_how_to_launch_it(path: Path) -> None:
    assert isinstance(read_recipe(path), Recipe)
    assert path.read_text().startswith("# diffprune ")


@pytest.mark.usefixtures("walked")
def test_the_report_shows_what_the_recipe_makes_now_and_survives_a_move() -> None:
    recipe = Path("recipe.yaml")
    Path("out").rename("moved")
    report = report_stage([Path("moved")], Path("moved.html"), title="moved")
    assert [row["model"] for row in report["models"]] == ["original", "pruned", "recovered"]
    assert all({"ssim", "mse", "frechet_distance"} <= row.keys() for row in report["models"])
    Path("moved").rename("out")
    recipe.write_text("\n".join(line for line in recipe.read_text().splitlines() if "finetune" not in line))
    walk(recipe, Path("out"))
    assert "recovered" not in Path("out/report.html").read_text()


def test_options_on_the_command_line_go_before_those_of_the_recipe(
    pipeline_folder: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    recipe.write_text(SMALL.format(model=pipeline_folder, data=image_folder, ratio=0.5))
    changes = ["plan.ratio=0.25", "plan.criterion=magnitude", "finetune=null", "sample.num=2", "evaluate.metrics=[mse]"]
    assert main(["run", str(recipe), "--out", str(out), "--set", *changes]) == 0
    assert read_json(out / "plan" / "run.json")["options"]["ratio"] == 0.25
    assert {p.name for p in (out / "samples").iterdir()} == {"original", "pruned"}
    assert main(["run", str(recipe), "--out", str(out), "--set", "plan.raito=0.2", "sample.num=0"]) == 2
    message = capsys.readouterr().err
    assert "plan.raito: no such option; did you mean 'ratio'?" in message
    assert "sample.num: got 0" in message
    assert main(["run", str(recipe), "--out", str(out), "--set", "ratio"]) == 2
    assert "expected section.option=value" in capsys.readouterr().err


@pytest.mark.slow
def test_criteria_are_compared_on_one_road(pipeline_folder: Path, image_folder: Path, tmp_path: Path) -> None:
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    recipe.write_text(SMALL.format(model=pipeline_folder, data=image_folder, ratio=0.5))
    changes = ["--set", "plan.threshold=0.1", "evaluate.metrics=[ssim]"]
    compared = ["--compare", "scratch", "magnitude", "diff-pruning"]
    assert main(["run", str(recipe), "--out", str(out), *changes, *compared]) == 0
    names = [f"{v}-{kind}" for v in ("scratch", "magnitude", "diff-pruning") for kind in ("pruned", "recovered")]
    assert {p.name for p in (out / "samples").iterdir()} == {"original", *names}
    plans = {v: read_json(out / v / "plan" / "plan.json") for v in ("scratch", "magnitude", "diff-pruning")}
    assert [plan["criterion"] for plan in plans.values()] == ["random", "magnitude", "diff-pruning"]
    assert plans["diff-pruning"]["options"]["threshold"] == 0.1
    assert len({plan["after"]["params"] for plan in plans.values()}) == 1
    assert read_json(out / "scratch" / "pruned" / "run.json")["options"]["reinit"] is True
    assert read_json(out / "magnitude" / "pruned" / "run.json")["options"]["reinit"] is False
    page = (out / "report.html").read_text()
    assert all(name in page for name in names)


def test_a_dry_run_tells_what_would_happen_and_writes_nothing(walked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "recipe.yaml", "--out", "new", "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["stage"] for row in told["steps"]] == ["plan", "prune", "finetune", *["sample"] * 3, "evaluate"]
    assert {row["status"] for row in told["steps"]} == {"new"}
    assert all(row["estimated_s"] > 0 for row in told["steps"] if row["stage"] in ("plan", "finetune", "sample"))
    assert told["downloads"] == []
    assert not Path("new").exists()

    assert main(["run", "recipe.yaml", "--out", "out", "--dry-run", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert {row["status"] for row in again["steps"] if row["stage"] != "evaluate"} == {"finished"}
    made = read_json(walked / "out" / "plan" / "plan.json")
    assert (told["params_after"], told["macs_after"]) == (made["after"]["params"], made["after"]["macs"])


def test_a_dry_run_reports_every_mistake_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(SMALL.format(model="digits", data=tmp_path / "nowhere", ratio=0.5))
    assert main(["run", str(recipe), "--out", str(tmp_path / "out"), "--dry-run"]) == 2
    message = capsys.readouterr().err
    assert "plan: no images at" in message
    assert "finetune: no images at" in message


def test_a_dry_run_names_what_would_be_downloaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(SMALL.format(model="team/model", data="digits", ratio=0.5))
    assert main(["run", str(recipe), "--out", str(tmp_path / "out"), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["downloads"] == ["team/model"]


OF_DIGITS = [shipped_recipes()[name] for name in ("digits", "digit-classifier", "demo")]


@pytest.mark.parametrize("path", OF_DIGITS, ids=lambda p: p.stem)
def test_every_recipe_of_the_digits_passes_a_dry_run(path: Path, tmp_path: Path) -> None:
    assert main(["run", str(path), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    assert not list(tmp_path.iterdir())


def figures(out: Path) -> dict[str, dict[str, float]]:
    rows: dict[str, dict[str, float]] = {}
    for name in ("original", "pruned", "recovered"):
        records = [out / "samples" / name, out / "metrics" / name / "pairs", out / "metrics" / name / "sets"]
        rows[name] = {k: v for path in records for k, v in read_json(path / "run.json")["result"].items()}
    return rows


def check_road(out: Path) -> None:
    """What the page promises: half the MACs gone, damage, and recovery near to the original."""
    rows = figures(out)
    assert 0.4 < rows["pruned"]["macs"] / rows["original"]["macs"] < 0.55
    assert rows["recovered"]["macs"] == rows["pruned"]["macs"]
    assert rows["pruned"]["ssim"] > 0.8  # 0.59 without compensation
    assert rows["recovered"]["ssim"] > 0.92
    assert rows["recovered"]["frechet_distance"] < 0.8 * rows["pruned"]["frechet_distance"]
    assert (out / "report.html").read_text().count("data:image/png;base64,") >= 5


@pytest.mark.slow
def test_the_demo_prunes_and_recovers_the_digits(tmp_path: Path) -> None:
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 0
    check_road(tmp_path / "demo")


@pytest.mark.slow
def test_the_digits_recipe_walks_from_training_to_report(tmp_path: Path) -> None:
    walk(shipped_recipes()["digits"], tmp_path / "digits")
    check_road(tmp_path / "digits")
    assert figures(tmp_path / "digits")["original"]["frechet_distance"] < 10


@pytest.mark.slow
def test_the_classifier_recipe_reaches_its_accuracy(tmp_path: Path) -> None:
    walk(shipped_recipes()["digit-classifier"], tmp_path / "classifier")
    (record,) = (tmp_path / "classifier").rglob("run.json")
    assert read_json(record)["result"]["test_accuracy"] > 0.97


def test_pruning_runs_as_the_plan_does_unless_its_section_says_otherwise() -> None:
    plan = {"device": "cpu", "offload": "cpu", "batch_size": 8}
    recipe = Recipe(name="x", model="digits", data="digits", plan=plan, prune={"batch_size": 4})
    assert (recipe.pruning.device, recipe.pruning.offload, recipe.pruning.batch_size) == ("cpu", "cpu", 4)
    assert recipe.variant("taylor")[1].offload == "cpu"
