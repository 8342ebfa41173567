"""The schema of a recipe: every section and option with its type, default and description."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_origin

from diffprune.options.option_help import choices_of, parts_of, shown_default
from diffprune.options.option_set import Options
from diffprune.options.recipe import Recipe


class RecipeEntry(NamedTuple):
    """One option of a recipe.

    section: name of the section; empty for an option at the top of the file. default: as YAML; `-` if required.
    """

    section: str
    option: str
    type: str
    default: str
    description: str


def recipe_schema() -> list[RecipeEntry]:
    """Return all options of a recipe: those at the top of the file, then each section in the order of its stages."""
    sections = {name: kind for name in Recipe.model_fields if (kind := section_class(name)) is not None}
    top = [_entry("", name, info) for name, info in Recipe.model_fields.items() if name not in sections]
    inner = [_entry(s, name, info) for s, kind in sections.items() for name, info in kind.model_fields.items()]
    return top + inner


def section_class(name: str) -> type[Options] | None:
    """Return the option set of a section of a recipe; None for an option at the top of the file."""
    parts = parts_of(Recipe.model_fields[name].annotation)
    return next((part for part in parts if isinstance(part, type) and issubclass(part, Options)), None)


def _entry(section: str, name: str, info: Any) -> RecipeEntry:
    default = "-" if info.is_required() else _yaml(info.default)
    return RecipeEntry(section, name, _type(info.annotation), default, info.description.replace("\n", "; "))


def _yaml(default: Any) -> str:
    if default is None or isinstance(default, bool):
        return {None: "null", True: "true", False: "false"}[default]
    if isinstance(default, tuple):
        return f"[{', '.join(map(shown_default, default))}]"
    return shown_default(default)


def _type(annotation: Any) -> str:
    """The values that an option takes, in words."""
    parts = parts_of(annotation)
    words = [word for kind, word in WORDS.items() if kind in parts]
    choices = [choice for choice in choices_of(annotation) if choice != "N"]
    one = " or ".join([*words, *([f"one of {', '.join(choices)}"] if choices else [])])
    if any(get_origin(part) is Mapping for part in parts):
        return "number, or mapping of layer pattern to number"
    return f"list of {one}" if any(get_origin(part) is tuple for part in parts) else one


WORDS = {bool: "true or false", int: "integer", float: "number", str: "text", Path: "path"}
