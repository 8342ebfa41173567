"""The pages on data sets and presets agree with the code."""

import re
from pathlib import Path

from diffprune.data.presets import PRESETS
from diffprune.stages.data_stage import _PUBLISHED

DOCS = Path(__file__).parents[2] / "docs"
TEXT = "".join((DOCS / page).read_text() for page in ("how-to/prepare-images.md", "reference/presets.md"))


def rows(first_heading: str) -> list[list[str]]:
    """The cells of the table whose first column is called so."""
    table = TEXT.split(f"| {first_heading} |", 1)[1].split("\n\n", 1)[0]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.splitlines()[2:]]


def test_the_table_of_presets_is_that_of_the_code() -> None:
    written = {name.strip("`"): f"{size}, crop {crop}, {fit}, {by}" for name, crop, size, fit, by, _ in rows("preset")}
    assert written == {name: str(preset) for name, preset in PRESETS.items()}


def test_the_table_of_data_sets_names_each_with_its_checksum_and_page() -> None:
    found = {name: row for row in rows("NAME") for name in re.findall(r"`([\w-]+)`", row[0])}
    assert found.keys() == _PUBLISHED.keys()
    for name, published in _PUBLISHED.items():
        _, _, download, md5, _ = found[name]
        assert re.findall(r"`([0-9a-f]{32})`", md5) == [published.md5] * (published.md5 is not None), name
        assert download == "yes" if published.url else published.page in download, name
