"""The pages agree with the code: folders, paths, and the files that stages write."""

import json
import re
from pathlib import Path

import pytest

from diffprune.artifact.manifest import Manifest
from diffprune.cli.main import main
from tests.test_house import FLOORS, PAGES, ROOT, page_name

REFERENCE = ROOT / "docs" / "reference"


def fields_of_first_table(page: str) -> list[str]:
    table = (REFERENCE / page).read_text().split("|---|", 1)[1].split("\n\n", 1)[0]
    return re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)


def test_the_page_on_the_manifest_lists_its_fields() -> None:
    assert fields_of_first_table("manifest.md") == list(Manifest.model_fields)


def test_the_page_on_run_json_lists_its_fields(tmp_path: Path) -> None:
    assert main(["prune", "digits", "--criterion", "magnitude", "--out", str(tmp_path / "pruned")]) == 0
    record = json.loads((tmp_path / "pruned" / "run.json").read_text())
    assert sorted(fields_of_first_table("run-json.md")) == sorted(record)
    named = (REFERENCE / "run-json.md").read_text().split("| `plan`, `prune` | ")[1].split(" |")[0]
    assert set(re.findall(r"`(\w+)`", named)) <= set(record["result"])


def test_the_architecture_page_lists_the_folders_in_their_order() -> None:
    text = (ROOT / "docs" / "explanation" / "architecture.md").read_text()
    assert re.findall(r"^\| `(\w+)(?:/|\.py)` \|", text, flags=re.MULTILINE) == FLOORS


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_paths_that_a_page_names_exist(page: Path) -> None:
    paths = re.findall(r"`((?:src|tests|docs|benchmarks|examples|scripts)/[\w./-]+)`", page.read_text())
    modules = re.findall(r"`([a-z_]+/[a-z_]+\.py)`", page.read_text())
    assert [path for path in paths if not (ROOT / path).exists()] == []
    inside = [path for path in modules if not (ROOT / path).exists()]
    assert [path for path in inside if not (ROOT / "src" / "diffprune" / path).exists()] == []
