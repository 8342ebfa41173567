"""The argument parser of one command, made from its option sets. Imports no torch."""

import argparse
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, get_args

from diffprune.cli.command import Argument, Command, ParsedOptions
from diffprune.cli.help_layout import help_of, help_width, usage_of
from diffprune.cli.option_rows import DEMO_FOLDER, nargs_of, output_arguments
from diffprune.errors import OptionError


class CommandParser(argparse.ArgumentParser):
    """Parse the arguments of one command; mistakes raise OptionError."""

    def __init__(self, name: str, command: Command) -> None:
        super().__init__(prog=f"diffprune {name}", allow_abbrev=False)
        self.name, self.command = name, command
        self.words: Sequence[str] = ()
        for positional in command.positionals:
            self.add_argument(positional.rstrip("?+"), nargs=positional[-1] if positional[-1] in "?+" else None)
        for argument in (*command.arguments, *output_arguments(command)):
            self._add_argument(argument)
        for field, info in fields_of(command).items():
            self._add_field(field, info)

    def parse_command(self, words: Sequence[str]) -> tuple[argparse.Namespace, ParsedOptions]:
        """Return all arguments, and the options among them; raises OptionError for a word that is no option."""
        self.words = words
        if "--help-full" in words:
            print(help_of(self.name, self.command, help_width(), full=True), end="")
            self.exit()
        parsed, unknown = self.parse_known_args(words)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            near = get_close_matches(unknown[0].split("=")[0], flags, n=1)
            hint = f"did you mean {near[0]}?" if near else "see --help"
            raise OptionError(f"no argument {unknown[0]!r}; {hint}")
        fields = fields_of(self.command)
        values = {name: _value(value, name, fields[name]) for name, value in vars(parsed).items() if name in fields}
        return parsed, ParsedOptions(self.command.options, values)

    def format_help(self) -> str:
        """Return the text of `--help`."""
        return help_of(self.name, self.command, help_width())

    def format_usage(self) -> str:
        """Return the usage in one line."""
        return usage_of(self.name, self.command)

    def error(self, message: str) -> NoReturn:
        """Raise OptionError; names an option that took the words of a missing argument."""
        greedy = [a.option_strings[0] for a in self._actions if a.nargs == "+" and a.option_strings]
        present = [flag for flag in greedy if flag in self.words]
        if present and message.startswith("the following arguments are required"):
            message += f"; {' and '.join(present)} took every word up to the next option: write what is required first"
        raise OptionError(f"{message}\n{self.format_usage()}; see --help")

    def _add_argument(self, argument: Argument) -> None:
        flag = f"--{argument.name}"
        if argument.flag:
            self.add_argument(flag, action="store_true")
        elif argument.name == "out":
            default = Path(DEMO_FOLDER) if self.command.out == "default" else None
            self.add_argument(flag, type=Path, required=self.command.out == "required", default=default)
        else:
            self.add_argument(flag, nargs="+" if argument.many else None)

    def _add_field(self, name: str, info: Any) -> None:
        flag = "--" + name.replace("_", "-")
        if info.annotation is bool:
            self.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS)
        else:
            self.add_argument(flag, default=argparse.SUPPRESS, nargs=nargs_of(info.annotation))


def fields_of(command: Command) -> dict[str, Any]:
    """Return the pydantic field of every option of a command by name."""
    return {name: info for kind in reversed(command.options) for name, info in kind.model_fields.items()}


def _value(value: Any, name: str, info: Any) -> Any:
    if value == "none" and type(None) in get_args(info.annotation):
        return None
    return int(value) if name == "power" and str(value).isdigit() else value
