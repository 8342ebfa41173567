"""The words of the house: plain terms of the field in the source and in every help text."""

import ast
import re
from pathlib import Path

import pytest

from diffprune.cli.commands import COMMANDS
from diffprune.cli.help_layout import MAX_WIDTH, help_of, overview

SOURCE = Path(__file__).parents[1] / "src" / "diffprune"

BANNED = re.compile(
    r"\b(?:told|heard|besides?|meanwhile|served|mended|but for|carr(?:y|ied|ies) out|anew|gone|stays? as|"
    r"made otherwise|taught)\b",
    flags=re.IGNORECASE,
)
"""Words that have a plainer equivalent: see the list of words in the contributing guide."""

NO_NOUNS = {"asked", "found", "given", "mine", "there"}
"""Names of variables that do not say what the value is."""


def words_in(text: str) -> list[str]:
    plain = re.sub(r"[_\s#\"]+", " ", text)
    return [match.group().strip() for match in BANNED.finditer(plain)]


def modules() -> list[str]:
    return [path.relative_to(SOURCE).as_posix() for path in sorted(SOURCE.rglob("*.py"))]


@pytest.mark.parametrize(
    "text",
    ["what it was told", "_beside_num", "but\n    # for the last", "units that are gone", "a plan made otherwise"],
)
def test_the_list_finds_words_in_names_and_across_lines(text: str) -> None:
    assert words_in(text)


@pytest.mark.parametrize("name", modules())
def test_a_module_uses_plain_words(name: str) -> None:
    assert words_in((SOURCE / name).read_text()) == []


@pytest.mark.parametrize("name", modules())
def test_names_of_a_module_are_nouns(name: str) -> None:
    nodes = list(ast.walk(ast.parse((SOURCE / name).read_text())))
    names = {node.arg for node in nodes if isinstance(node, ast.arg)}
    names |= {node.id for node in nodes if isinstance(node, ast.Name)}
    assert not names & NO_NOUNS


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_text_uses_plain_words_in_short_lines(name: str) -> None:
    text = help_of(name, COMMANDS[name], MAX_WIDTH, full=True)
    assert words_in(text) == []
    assert all(len(line) <= MAX_WIDTH for line in text.splitlines())


def test_the_overview_uses_plain_words() -> None:
    assert words_in(overview(COMMANDS)) == []
