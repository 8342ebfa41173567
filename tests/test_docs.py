"""The pages on files agree with the files that stages write."""

import json
import re
from pathlib import Path

from diffprune.artifact.manifest import Manifest
from diffprune.cli.main import main

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"


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
