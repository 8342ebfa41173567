"""What a command is: its arguments, its option sets, and the stage function that it calls."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast

from diffprune.options import Options, parse_options

OptionsT = TypeVar("OptionsT", bound=Options)


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

    positionals: name -> description. A name ends in `?` where it is optional, in `+` where it takes one or more.
    most_used: the options that most people need first. example: command lines that run one after the other.
    overwrite: whether --overwrite replaces a result at `out`.
    next_steps: command lines to try next, printed after the result.
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
    next_steps: tuple[str, ...] = ()


class ParsedOptions:
    """The option sets of one command line; raises OptionError that lists the mistakes of a set at once."""

    def __init__(self, kinds: Sequence[type[Options]], values: Mapping[str, Any]) -> None:
        self.values = values
        self._sets = {kind: parse_options(kind, _values_of(kind, values), what="invalid options") for kind in kinds}

    def __call__(self, kind: type[OptionsT]) -> OptionsT:
        """Return the option set of one class."""
        return cast(OptionsT, self._sets[kind])


def _values_of(kind: type[Options], values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in kind.model_fields}
