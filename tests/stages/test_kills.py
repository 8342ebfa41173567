"""Stages that are killed (SIGKILL) and called again leave what an undisturbed run leaves, file by file."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import diffprune
from diffprune.evaluation.feature_statistics import read_statistics
from diffprune.planning import read_plan
from tests.conftest import photos
from tests.helpers.forks import Ended, Forks

Commands = dict[str, list[str]]

CALIBRATION = [
    "--num-calibration-images", "8", "--batch-size", "3", "--timestep-stride", "4", "--ratio", "0.3", "--device", "cpu",
]  # fmt: skip
SCORING = [*CALIBRATION, "--criterion", "diff-pruning", "--threshold", "0.01", "--rounds", "2"]
FILES = {"plan-file": "plan.json", "stats": "stats.npz"}
"""By stage the file that it leaves; the others leave a folder."""

TIMED = ("started", "wall_time_s", "peak_memory_mb", "latency_ms", "images_per_s", "platform")
"""What differs between any two runs."""


@pytest.fixture(scope="module")
def commands(pipeline_folder: Path, image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Commands:
    """By stage its command, without --out; `cut` only cuts weights by a plan file."""
    model, data = str(pipeline_folder), str(image_folder)
    folder = tmp_path_factory.mktemp("kills")
    pictures, cut = photos(folder / "photos", 1, num=9), folder / "plan.json"
    diffprune.plan(diffprune.load_pipeline(model), criterion="magnitude", ratio=0.3).save(cut)
    return {
        "plan": ["plan", model, "--data", data, *SCORING],
        "plan-file": ["plan", model, "--data", data, *SCORING],
        "absolute": ["plan", model, "--data", data, *CALIBRATION, "--criterion", "absolute"],
        "prune": [
            "prune", model, "--data", data, *CALIBRATION, "--criterion", "taylor", "--num-compensation-images", "12"
        ],
        "obs": ["plan", model, "--data", data, *CALIBRATION, "--criterion", "obs"],
        "cut": ["prune", model, "--plan", str(cut)],
        "sample": ["sample", model, "--num", "7", "--steps", "4", "--batch-size", "2", "--device", "cpu"],
        "stats": ["stats", str(pictures), "--batch-size", "2", "--num-workers", "0", "--device", "cpu"],
    }  # fmt: skip


def place(stage: str, folder: Path) -> Path:
    """What to give as --out."""
    return folder / FILES[stage] if stage in FILES else folder


def untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: untimed(part) for name, part in value.items() if name not in TIMED}
    return value


def contents(folder: Path) -> dict[str, Any]:
    """Every file below a folder, hidden ones too, with what it holds; of `run.json` and statistics without times."""
    found: dict[str, Any] = {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if file.name == "run.json":
            found[name] = untimed(json.loads(file.read_text()))
        elif file.suffix == ".npz":
            with np.load(file) as arrays:
                found[name] = {k: arrays[k].tobytes() for k in arrays.files if k != "details"}
        else:
            found[name] = file.read_bytes() if file.is_file() else None
    return found


def ended_well(ended: Ended) -> Ended:
    assert ended.status == 0, ended.output
    return ended


def results(written: list[str]) -> list[str]:
    """Without what says that a run goes on."""
    return [name for name in written if name not in ("run.json", "plan.json")]


@pytest.mark.parametrize(
    ("stage", "moment"),
    [
        ("plan", ("at-", 7)),
        ("plan-file", ("at-", 7)),
        ("prune", (".compensation/", 6)),
        ("cut", ("model_index.json", 1)),
        ("sample", (".png", 4)),
        ("stats", ("at-", 3)),
        ("stats", (".npz", 6)),
    ],
    ids=["plan", "plan-file", "prune", "cut", "sample", "stats", "stats-at-its-end"],
)
def test_a_killed_stage_ends_in_the_undisturbed_result(
    stage: str, moment: tuple[str, int], forks: Forks, commands: Commands, tmp_path: Path
) -> None:
    """And what was there before the kill is not made again."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    undisturbed = ended_well(forks.run([*commands[stage], "--out", place(stage, whole)]))
    died = forks.run([*commands[stage], "--out", place(stage, killed)], die_at=moment)
    assert died.killed
    again = ended_well(forks.run([*commands[stage], "--out", place(stage, killed)]))
    assert contents(killed) == contents(whole)
    if stage != "cut":
        assert results(died.written + again.written) == results(undisturbed.written)


@pytest.mark.parametrize(("stage", "change"), [("plan-file", ["--seed", "1"]), ("stats", ["--batch-size", "3"])])
def test_what_was_summed_by_other_options_is_not_taken_up(
    stage: str, change: list[str], forks: Forks, commands: Commands, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert forks.run([*commands[stage], "--out", place(stage, killed)], die_at=("at-", 3)).killed
    for folder in (whole, killed):
        ended_well(forks.run([*commands[stage], *change, "--out", place(stage, folder)]))
    assert contents(killed) == contents(whole)


@pytest.mark.parametrize(
    ("stage", "moment"),
    [
        ("plan", ("at-", 7)),
        pytest.param("absolute", ("at-", 3), marks=pytest.mark.slow),
        pytest.param("obs", ("at-", 3), marks=pytest.mark.slow),
        pytest.param("prune", (".compensation/", 6), marks=pytest.mark.slow),
    ],
    ids=["plan", "absolute", "obs", "prune"],
)
def test_two_processes_choose_the_units_of_one_and_may_be_killed(
    stage: str, moment: tuple[str, int], forks: Forks, commands: Commands, tmp_path: Path
) -> None:
    """By images with a threshold, by timesteps without."""
    one, two, killed = (tmp_path / name for name in ("one", "two", "killed"))
    ended_well(forks.run([*commands[stage], "--out", one]))
    ended_well(forks.run([*commands[stage], "--out", two], num_processes=2))
    assert forks.run([*commands[stage], "--out", killed], num_processes=2, die_at=moment).killed
    shutil.copytree(killed, tmp_path / "alone")
    ended_well(forks.run([*commands[stage], "--out", killed], num_processes=2))
    assert contents(killed) == contents(two)
    alone = ended_well(forks.run([*commands[stage], "--out", tmp_path / "alone"]))
    if stage == "plan":
        assert alone.written[1].startswith("at-00000002"), "the sums of two processes were not taken up by one"
    assert read_plan(tmp_path / "alone" / "plan.json").groups == read_plan(one / "plan.json").groups
    plans = [read_plan(folder / "plan.json") for folder in (one, two)]
    assert plans[0].groups == plans[1].groups
    if stage != "obs":
        assert plans[0].details["stopped_at"] == plans[1].details["stopped_at"]
        assert plans[0].details["losses"] == pytest.approx(plans[1].details["losses"], rel=1e-4)
    if stage == "prune":
        weights = [load_file(f / "unet" / "diffusion_pytorch_model.safetensors") for f in (one, two)]
        assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.slow
def test_two_processes_gather_statistics_and_may_be_killed(forks: Forks, commands: Commands, tmp_path: Path) -> None:
    """Their sums are taken up by one as well."""
    words, moment = commands["stats"], ("at-", 2)
    one, two, killed, alone = (tmp_path / name for name in ("one", "two", "killed", "alone"))
    ended_well(forks.run([*words, "--out", place("stats", one)]))
    ended_well(forks.run([*words, "--out", place("stats", two)], num_processes=2))
    assert forks.run([*words, "--out", place("stats", killed)], num_processes=2, die_at=moment).killed
    shutil.copytree(killed, alone)
    ended_well(forks.run([*words, "--out", place("stats", killed)], num_processes=2))
    assert contents(killed) == contents(two)
    ended = ended_well(forks.run([*words, "--out", place("stats", alone)]))
    assert ended.written[0].startswith("at-00000003"), "the sums of two processes were not taken up by one"
    statistics = [read_statistics(place("stats", folder)).by_metric["fid"] for folder in (one, two, alone)]
    for found in statistics[1:]:
        torch.testing.assert_close(found.mu, statistics[0].mu, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(found.sigma, statistics[0].sigma, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_any_moment_will_do(forks: Forks, commands: Commands, tmp_path: Path) -> None:
    """30 random ones, over all stages; those of which processes share the work in one process and in two."""
    rng = random.Random(0)
    cases = [(stage, 1) for stage in commands] + [(stage, 2) for stage in ("plan", "prune", "sample", "stats")]
    undisturbed: dict[tuple[str, int], float] = {}
    num_killed = 0
    for number in range(30):
        stage, num_processes = case = cases[number % len(cases)]
        whole, killed = tmp_path / f"{stage}-{num_processes}", tmp_path / f"{number}"
        words = [*commands[stage], "--out", place(stage, killed)]
        if case not in undisturbed:
            whole_words = [*commands[stage], "--out", place(stage, whole)]
            ended = ended_well(forks.run(whole_words, num_processes=num_processes))
            undisturbed[case] = ended.wall_s
        moment = rng.uniform(0, undisturbed[case])
        ended = forks.run(words, num_processes=num_processes, die_after_s=moment)
        num_killed += ended.killed
        ended_well(forks.run(words, num_processes=num_processes))
        assert contents(killed) == contents(whole), f"{case}, killed after {moment:.3f} s"
        assert not list(tmp_path.rglob("*.part")), case
    assert num_killed > 20
