"""`diffprune recipes`: lists, prints and copies the shipped recipes."""

import json
from pathlib import Path

import pytest

from diffprune.cli.main import main
from diffprune.errors import OptionError
from diffprune.options.recipe import read_recipe
from diffprune.options.shipped_recipes import shipped_recipes


def test_the_shipped_recipes_are_listed_with_a_description(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["recipes"]
    assert [row["recipe"] for row in rows] == list(shipped_recipes())
    assert {"recipe": "cifar10", "description": "CIFAR-10, Diff-Pruning at ratio 0.3"} in rows
    assert main(["recipes"]) == 0
    assert "Diff-Pruning at ratio 0.3" in capsys.readouterr().out


def test_a_copy_of_a_recipe_is_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "new" / "mine.yaml"
    assert main(["recipes", "cifar10", "--out", str(copy)]) == 0
    assert copy.read_text() == shipped_recipes()["cifar10"].read_text()
    assert read_recipe(copy) == read_recipe("cifar10")
    capsys.readouterr()
    assert main(["recipes", "cifar10"]) == 0
    assert capsys.readouterr().out == copy.read_text()


def test_a_copy_replaces_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text("mine")
    assert main(["recipes", "cifar10", "--out", str(tmp_path / "mine.yaml")]) == 1
    assert "mine.yaml already exists" in capsys.readouterr().err
    assert (tmp_path / "mine.yaml").read_text() == "mine"


def test_an_unknown_recipe_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "cifar"]) == 2
    assert "no shipped recipe 'cifar'; shipped are: celeba64, cifar10," in capsys.readouterr().err
    assert main(["run", "cifar", "--out", "out"]) == 2
    assert "no recipe cifar: expected a YAML file or a shipped recipe" in capsys.readouterr().err


def test_a_file_named_like_a_shipped_recipe_is_ambiguous(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").write_text("name: mine")
    with pytest.raises(OptionError, match=r"write \./demo"):
        read_recipe("demo")
    assert read_recipe("./demo").name == "mine"
