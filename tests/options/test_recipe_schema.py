"""The schema of a recipe lists what a recipe takes."""

import pytest
import yaml

from diffprune.errors import OptionError
from diffprune.options import parse_options
from diffprune.options.recipe import Recipe
from diffprune.options.recipe_schema import RecipeEntry, recipe_schema, section_class
from diffprune.options.shipped_recipes import shipped_recipes


def test_every_option_of_the_shipped_recipes_is_in_the_schema() -> None:
    known = {(entry.section, entry.option) for entry in recipe_schema()}
    for path in shipped_recipes().values():
        for name, value in yaml.safe_load(path.read_text()).items():
            options = [(name, option) for option in value] if section_class(name) else [("", name)]
            assert set(options) <= known, path


def test_types_defaults_and_descriptions_are_those_of_the_options() -> None:
    entries = {(entry.section, entry.option): entry for entry in recipe_schema()}
    assert len(entries) == len(recipe_schema())
    assert entries["", "name"].default == "-"
    assert entries["plan", "ratio"] == RecipeEntry(
        "plan", "ratio", "number, or mapping of layer pattern to number", "0.3",
        "pruning ratio: share of units to remove; per layer: 0.3 'down_blocks.0.*=0.1' (the last match counts)",
    )  # fmt: skip
    assert entries["plan", "round_to"].type == "integer or one of auto"
    assert entries["plan", "kinds"].type == "list of one of channels, heads, neurons, blocks"
    assert entries["evaluate", "metrics"].default == "[ssim, mse]"
    assert entries["prune", "compensate"][2:4] == ("true or false", "true")
    assert entries["evaluate", "prompts"].type == "path"
    assert all(entry.type and entry.description for entry in recipe_schema())


def test_the_defaults_of_the_schema_are_valid_values() -> None:
    recipe = yaml.safe_load(shipped_recipes()["digits"].read_text())
    skipped = {"teacher_weight", "prompts", "data"}  # need another option
    for section in ("plan", "prune", "finetune", "sample", "evaluate"):
        entries = [e for e in recipe_schema() if e.section == section and e.option not in skipped]
        recipe[section] = {entry.option: yaml.safe_load(entry.default) for entry in entries}
    assert isinstance(parse_options(Recipe, recipe, what="recipe"), Recipe)
    with pytest.raises(OptionError):
        parse_options(Recipe, recipe | {"unknown": 1}, what="recipe")
