"""Recipes that ship with the package: their names, their files, and copies of them. Imports no torch."""

import os
from pathlib import Path

import yaml

from diffprune.errors import FolderError, OptionError

FOLDER = Path(__file__).parents[1] / "assets" / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """Return the file of every shipped recipe by name, such as `cifar10`."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def describe_recipes() -> list[dict[str, str]]:
    """Return one row per shipped recipe: its name and its one-line description."""
    return [
        {"recipe": name, "description": str(yaml.safe_load(path.read_text())["name"])}
        for name, path in shipped_recipes().items()
    ]


def find_recipe(source: str | os.PathLike[str]) -> Path:
    """Return the file of a recipe: a path, or the name of a shipped recipe.

    Raises OptionError if there is no such file or recipe, or if the name fits both.
    """
    name, path, shipped = os.fspath(source), Path(source), shipped_recipes()
    if name in shipped and path.is_file():
        raise OptionError(f"{name} is a shipped recipe and a file in this folder. For the file, write ./{name}")
    if name in shipped:
        return shipped[name]
    if not path.exists():
        raise OptionError(f"no recipe {name}: expected a YAML file or a shipped recipe ({', '.join(shipped)})")
    return path


def copy_recipe(name: str, out: Path) -> Path:
    """Copy a shipped recipe to the new file `out` and return `out`.

    Raises OptionError if no shipped recipe has this name, and FolderError if `out` exists or cannot be written.
    """
    text = recipe_text(name)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("x") as file:
            file.write(text)
    except FileExistsError as error:
        raise FolderError(f"{out} already exists. Choose another file for --out") from error
    except OSError as error:
        raise FolderError(f"cannot write {out}: {error.strerror}") from error
    return out


def recipe_text(name: str) -> str:
    """Return the YAML text of a shipped recipe; raises OptionError if no shipped recipe has this name."""
    shipped = shipped_recipes()
    if name not in shipped:
        raise OptionError(f"no shipped recipe {name!r}; shipped are: {', '.join(shipped)}")
    return shipped[name].read_text()
