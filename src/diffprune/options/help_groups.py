"""Help groups: their titles in the order of need, and the group of each option."""

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
