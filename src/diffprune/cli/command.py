"""What a command is: its arguments, its option sets, and the stage function that it calls."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from diffprune.options import Options, parse_options

Set = TypeVar("Set", bound=Options)


@dataclass(frozen=True)
class Argument:
    """An option of a command that belongs to no option set.

    many: takes one word or more. flag: takes no word.
    """

    name: str
    description: str
    group: str
    metavar: str = ""
    many: bool = False
    flag: bool = False


@dataclass(frozen=True)
class Command:
    """One command of the command line.

    positionals: name -> description; a name ends in `?` where it is optional, in `+` where it takes one or more.
    most_used: the options that most people need first. example: command lines that run one after the other.
    overwrite: whether --overwrite replaces a result at `out`.
    call: called with the parsed arguments and the validated options; returns the result to print.
    """

    summary: str
    call: Callable[[Any, "ParsedOptions"], Any]
    example: tuple[str, ...]
    positionals: Mapping[str, str] = field(default_factory=dict)
    options: tuple[type[Options], ...] = ()
    arguments: tuple[Argument, ...] = ()
    most_used: tuple[str, ...] = ()
    out: Literal["required", "optional", "default", None] = None
    overwrite: bool = True


class ParsedOptions:
    """The options of one command line, validated per option set."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def __call__(self, kind: type[Set]) -> Set:
        """Return the option set with the values of the command line; raises OptionError that lists all mistakes."""
        own = {name: value for name, value in self._values.items() if name in kind.model_fields}
        return parse_options(kind, own, what="command line")

    def names(self) -> set[str]:
        """Return the names of the options on the command line."""
        return set(self._values)
