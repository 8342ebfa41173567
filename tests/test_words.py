"""The words of the house: plain terms of the field in the source and in every help text."""

import re
from pathlib import Path

import pytest

from diffprune.cli.commands import COMMANDS
from diffprune.cli.help_layout import MAX_WIDTH, help_of, overview

SOURCE = Path(__file__).parents[1] / "src" / "diffprune"

BANNED = re.compile(
    r"\b(?:told|heard|besides?|meanwhile|served|mended|but for|carr(?:y|ied|ies) out|anew|gone|stays? as)\b",
    flags=re.IGNORECASE,
)
"""Words that have a plainer equivalent: see the list of words in the contributing guide."""

NOT_YET: tuple[str, ...] = (
    "calibration/calibration_set.py", "calibration/captions.py", "calibration/latent_cache.py",
    "calibration/text_latents.py", "planning/allocation.py",
    "planning/latency.py", "planning/plan.py", "planning/rounds.py", "pruning/surgery.py",
    "recipes/recipe_checks.py", "recipes/run_recipe.py", "stages/convert_stage.py",
    "stages/data_stage.py", "stages/plan_stage.py", "stages/prune_stage.py", "stages/stats_stage.py",
    "stages/train_stage.py",
)  # fmt: skip
"""Modules that still have such words; this list only shrinks."""


def words_in(text: str) -> list[str]:
    plain = re.sub(r"[_\s#\"]+", " ", text)
    return [match.group().strip() for match in BANNED.finditer(plain)]


def modules() -> list[str]:
    return [path.relative_to(SOURCE).as_posix() for path in sorted(SOURCE.rglob("*.py"))]


@pytest.mark.parametrize("text", ["what it was told", "_beside_num", "but\n    # for the last", "units that are gone"])
def test_the_list_finds_words_in_names_and_across_lines(text: str) -> None:
    assert words_in(text)


@pytest.mark.parametrize("name", [name for name in modules() if name not in NOT_YET])
def test_a_module_uses_plain_words(name: str) -> None:
    assert words_in((SOURCE / name).read_text()) == []


def test_modules_that_are_clean_leave_the_list_of_exceptions() -> None:
    assert set(NOT_YET) <= {name for name in modules() if words_in((SOURCE / name).read_text())}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_text_uses_plain_words_in_short_lines(name: str) -> None:
    text = help_of(name, COMMANDS[name], MAX_WIDTH, full=True)
    assert words_in(text) == []
    assert all(len(line) <= MAX_WIDTH for line in text.splitlines())


def test_the_overview_uses_plain_words() -> None:
    assert words_in(overview(COMMANDS)) == []
