"""What the help and the docs say of an option: its group, its choices and its default."""

from typing import Any, Literal, get_args, get_origin

from diffprune.options.option_set import Options

MOST_USED = "most used"
"""Title of the options that most people need first; each command lists its own."""

GROUPS = (
    MOST_USED, "what to remove", "how to score", "analysis", "model", "checkpoint", "data set", "images", "sampler",
    "metrics", "Inception", "data", "training", "distillation", "compensation", "text and video models",
    "image preparation", "validation", "checkpoints and logs", "recipe", "device and memory", "output",
)  # fmt: skip
"""Titles of all groups. `--help` shows them in this order."""


def group_of(kind: type[Options], name: str) -> str:
    """Return the title of the group of one option: the nearest class that lists it decides."""
    for base in kind.__mro__:
        for title, names in vars(base).get("groups", {}).items():
            if name in names:
                return str(title)
    raise AssertionError(f"{kind.__name__}.{name} has no help group: list it in `groups` of its class")


def in_order_of_need(kind: type[Options]) -> list[str]:
    """Return the names of all options, by group, and in each group in the order of `groups`; own options come first."""
    names = [n for base in kind.__mro__ for listed in vars(base).get("groups", {}).values() for n in listed]
    ranks = {name: GROUPS.index(group_of(kind, name)) for name in kind.model_fields}
    return sorted(dict.fromkeys(n for n in names if n in ranks), key=lambda name: ranks[name])


def choices_of(annotation: Any) -> list[str]:
    """Return the words that an option takes; `N` among them where it takes a number too."""
    for part in parts_of(annotation):
        if get_origin(part) is Literal:
            return [*(["N"] if int in parts_of(annotation) else []), *map(str, get_args(part))]
    return []


def parts_of(annotation: Any) -> list[Any]:
    """Return a type annotation and all types inside it, without the choices of a Literal."""
    inner = [] if get_origin(annotation) is Literal else get_args(annotation)
    return [annotation, *(part for argument in inner for part in parts_of(argument))]


def shown_default(default: Any) -> str:
    """Return a default as it is written on the command line."""
    if isinstance(default, tuple):
        return " ".join(map(str, default)) or "none"
    return f"{default:g}" if isinstance(default, float) else str(default)
