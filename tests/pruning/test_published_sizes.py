"""The pages on the published system and its experiments: every row has a command, and every command is one."""

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from diffprune.cli.commands import COMMANDS, Command
from diffprune.cli.main import main
from diffprune.options.recipe import read_recipe
from diffprune.options.shipped_recipes import shipped_recipes

ROOT = Path(__file__).parents[2]
PAGE = "".join(
    (ROOT / "docs" / page).read_text() for page in ("reference/published-system.md", "how-to/run-a-recipe.md")
)
LAUNCHER = "accelerate launch --num_processes 4 -m diffprune "


def sections() -> dict[str, str]:
    parts = re.split(r"^## (.*)$", PAGE, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def commands_in(text: str) -> list[str]:
    lines = "\n".join(re.findall(r"```text\n(.*?)```", text, flags=re.DOTALL)).splitlines()
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    found = [span.replace(LAUNCHER, "diffprune ") for span in [*lines, *spans]]
    return [command for command in found if command.startswith("diffprune ")]


def checking(command: Command) -> Command:
    """The command, with a call that only looks at what was given."""

    def call(parsed: Any, given: Any) -> dict[str, Any]:
        for kind in command.options:
            given(kind)
        if "recipe" in command.positionals:
            read_recipe(parsed.recipe, parsed.set or [])
        return {}

    return dataclasses.replace(command, call=call)


@pytest.mark.parametrize("line", dict.fromkeys(commands_in(PAGE)))
def test_every_command_of_the_page_is_one(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffprune.cli.main.refuse_missing_inputs", lambda arguments: None)  # of no MODEL or DATA
    monkeypatch.setattr("diffprune.cli.main.COMMANDS", {name: checking(command) for name, command in COMMANDS.items()})
    assert main(shlex.split(line)[1:]) == 0


@pytest.mark.parametrize("section", ["What it does", "Its scripts"])
def test_every_row_has_a_command(section: str) -> None:
    rows = [row for row in sections()[section].splitlines() if row.startswith("| ")][1:]
    assert len(rows) > 5
    assert [row for row in rows if not commands_in(row)] == []


def test_every_recipe_of_a_published_experiment_has_a_row() -> None:
    shipped = {name for name in shipped_recipes() if "digit" not in name and name != "demo"}
    assert shipped == set(re.findall(r"^\| `([\w-]+)` \|", sections()["Published experiments"], flags=re.MULTILINE))
