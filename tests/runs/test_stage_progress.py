"""Progress over the stages of a recipe."""

import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffprune.options.recipe import read_recipe
from diffprune.options.shipped_recipes import shipped_recipes
from diffprune.recipes import run_recipe
from diffprune.runs.progress import progress
from diffprune.runs.stage_progress import stage_progress, start_stage
from diffprune.runs.terminal_bars import _displays


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_name_each_stage_and_the_total(capsys: pytest.CaptureFixture[str]) -> None:
    start_stage("before any recipe runs")
    with stage_progress(2):
        start_stage("plan")
        start_stage("prune")
    assert capsys.readouterr().err == "== stage 1/2: plan\n== stage 2/2: prune\n"


def test_only_rank_0_reports(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    with stage_progress(2):
        start_stage("plan")
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_one_bar_of_all_stages_with_the_loop_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    with stage_progress(3):
        start_stage("plan")
        start_stage("sample pruned")
        with progress("sampling", 4, "images") as advance:
            advance(4, "")
            _displays[-1].refresh()
        start_stage("report")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert re.search(r"all stages .*2/3 stages.*stage 3: report", shown)
    assert re.search(r"sampling .*4/4 images", shown)
    assert re.search(r"all stages .*3/3 stages", shown)
    assert _displays == []


def test_a_loop_that_ends_early_leaves_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", Terminal())

    def loop() -> Iterator[int]:
        with progress("scores", 4, "timesteps"):
            yield from range(4)

    with stage_progress(1):
        next(steps := loop())
        assert [task.description for task in _displays[-1].tasks] == ["all stages", "scores"]
        steps.close()
        assert [task.description for task in _displays[-1].tasks] == ["all stages"]


@pytest.mark.parametrize("name", shipped_recipes())
@pytest.mark.parametrize("compare", [(), ("compare=[scratch, magnitude, diff-pruning]",)])
def test_every_stage_of_a_recipe_is_counted(
    name: str, compare: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for function in [f for f in vars(run_recipe) if f.endswith("_stage") and f not in ("run_stage", "start_stage")]:
        monkeypatch.setattr(run_recipe, function, lambda *_, **__: {})
    monkeypatch.setattr(run_recipe, "check_recipe", lambda *_, **__: None)
    recipe = read_recipe(name, compare if name != "digit-classifier" else ())
    run_recipe.run_stage(recipe, tmp_path)
    lines = capsys.readouterr().err.splitlines()
    total = run_recipe.num_stages(recipe)
    assert [line.split(":")[0] for line in lines] == [f"== stage {k + 1}/{total}" for k in range(total)]
