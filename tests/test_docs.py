"""The pages agree with the code: folders, paths, and the files that stages write."""

import json
import re
import shlex
from pathlib import Path

import pytest

from diffprune.artifact.manifest import Manifest
from diffprune.cli.commands import COMMANDS
from diffprune.cli.main import main
from diffprune.cli.parser import CommandParser
from tests.test_house import FLOORS, PAGES, ROOT, blocks, page_name

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


def commands_of_text_blocks(page: Path) -> list[str]:
    text = "\n".join(blocks(page, "text")).replace("\\\n", " ")
    lines = [line.split("  #")[0].strip() for line in text.splitlines()]
    lines = [re.sub(r"^(accelerate launch|torchrun) .*?-m (-- )?diffprune ", "diffprune ", line) for line in lines]
    return [line for line in lines if line.startswith("diffprune ") and "COMMAND" not in line]


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_commands_that_are_not_run_have_options_that_exist(page: Path) -> None:
    for line in commands_of_text_blocks(page):
        words = shlex.split(line.replace(" SHA256 ", " " + 64 * "0" + " "))[1:]
        name = " ".join(words[: 2 if words[0] == "analyze" else 1])
        _, options = CommandParser(name, COMMANDS[name]).parse_command(words[len(name.split()) :])
        for kind in COMMANDS[name].options:
            options(kind)
