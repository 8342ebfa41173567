"""The command line: parse, call a command, print. Importing this imports no torch."""

import argparse
import importlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

from diffprune.cli.commands import COMMANDS, Command, ParsedOptions
from diffprune.errors import DiffpruneError, Interrupted, OptionError


class _Parser(argparse.ArgumentParser):
    words: Sequence[str] = ()
    """What was given."""

    def error(self, message: str) -> NoReturn:
        greedy = [a.option_strings[0] for a in self._actions if a.nargs == "+" and a.option_strings]
        given = [flag for flag in greedy if flag in self.words]
        if given and message.startswith("the following arguments are required"):
            message += f"; {' and '.join(given)} took every word up to the next option: write what is required first"
        raise OptionError(f"{message}\n{self.format_usage().strip().splitlines()[0]} ...; see --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 failed, 2 wrong usage, 128 and its number for a signal."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        print(importlib.import_module("diffprune").__version__)
        return 0
    try:
        return _run_command(words)
    except OptionError as error:
        return _fail(error, 2)
    except DiffpruneError as error:
        return _fail(error, 1)
    except Interrupted as error:
        _take_leave()
        return _fail(error, 128 + error.signal)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _run_command(words: list[str]) -> int:
    name = " ".join(words[: 2 if any(known.startswith(f"{words[0]} ") for known in COMMANDS) else 1])
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, n=1)
        raise OptionError(f"no command {name!r}" + (f"; did you mean {near[0]!r}?" if near else "; see --help"))
    command = COMMANDS[name]
    parser = _parser(name, command)
    parser.words = words[len(name.split()) :]
    parsed, unknown = parser.parse_known_args(parser.words)
    if unknown:
        flags = [s for action in parser._actions for s in action.option_strings]
        near = get_close_matches(unknown[0].split("=")[0], flags, n=1)
        raise OptionError(f"no argument {unknown[0]!r}" + (f"; did you mean {near[0]}?" if near else "; see --help"))
    fields = {field for kind in command.options for field in kind.model_fields}
    given = ParsedOptions({k: _value(v, k, command) for k, v in vars(parsed).items() if k in fields})
    result = command.call(parsed, given)
    _take_leave()
    if os.environ.get("RANK", "0") != "0":  # the first one speaks for all
        return 0
    if getattr(parsed, "json", False):
        print(json.dumps(result))
    elif isinstance(result, str):
        print(result, end="")
    else:
        _print(result)
    return 0


def _take_leave() -> None:
    if "RANK" in os.environ:  # one of several processes
        importlib.import_module("diffprune.runs.distributed").leave_process_group()


def _parser(name: str, command: Command) -> _Parser:
    parser = _Parser(prog=f"diffprune {name}", description=command.summary, allow_abbrev=False)
    for positional, text in command.positionals.items():
        many = positional[-1] if positional[-1] in "?+" else None
        parser.add_argument(positional.rstrip("?+"), help=text, nargs=many)
    for flag, text in command.extras:
        parser.add_argument(f"--{flag.rstrip('+')}", help=text, nargs="+" if flag.endswith("+") else None)
    for flag, text in command.flags:
        parser.add_argument(f"--{flag}", help=text, action="store_true")
    seen: set[str] = set()
    for kind in command.options:
        for field, info in kind.model_fields.items():
            if field not in seen:
                _add_option(parser, field, info)
            seen.add(field)
    if command.out is not None:
        default = Path("diffprune-demo") if command.out == "default" else None
        text = f"folder to write (default: {default})" if default else "where to write"
        parser.add_argument("--out", type=Path, required=command.out == "required", default=default, help=text)
        if command.options:
            parser.add_argument("--overwrite", action="store_true", help="replace a result made with other options")
    if command.json:
        parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    return parser


def _add_option(parser: argparse.ArgumentParser, name: str, info: Any) -> None:
    flag = "--" + name.replace("_", "-")
    shown = "" if info.default is None else f" (default: {_shown(info.default)})"
    text = f"{info.description}{shown}".replace("%", "%%")
    if info.annotation is bool:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        return
    parser.add_argument(
        flag,
        default=argparse.SUPPRESS,
        metavar=_metavar(name, info.annotation),
        help=text,
        nargs=_nargs(info.annotation),
    )


def _nargs(annotation: Any) -> str | int | None:
    """How many words an option takes: those of a tuple, any number for a mapping, else one."""
    for part in (annotation, *get_args(annotation)):
        if get_origin(part) is tuple:
            return "+" if Ellipsis in get_args(part) else len(get_args(part))
        if get_origin(part) is Mapping:
            return "+"
    return None


def _metavar(name: str, annotation: Any) -> str:
    for part in (annotation, *get_args(annotation)):
        if get_origin(part) is Literal:
            numbers = ["N"] if any(int in (other, *get_args(other)) for other in get_args(annotation)) else []
            return "{" + ",".join([*numbers, *map(str, get_args(part))]) + "}"
    return name.rpartition("_")[2].upper()


def _value(value: Any, name: str, command: Command) -> Any:
    field = next(kind.model_fields[name] for kind in command.options if name in kind.model_fields)
    if value == "none" and type(None) in get_args(field.annotation):
        return None
    return int(value) if name == "power" and str(value).isdigit() else value


def _shown(default: Any) -> str:
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _overview() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{command.summary}" for name, command in COMMANDS.items()]
    return (
        "usage: diffprune COMMAND [options]\n\n"
        "Make pretrained diffusion models smaller and faster, and keep what they draw.\n\n"
        + "\n".join(lines)
        + "\n\n`diffprune COMMAND --help` explains a command; `diffprune demo` shows the whole road."
    )


def _print(result: Any) -> None:
    """A result for people: tables where it holds rows, names and values otherwise."""
    from diffprune.cli.terminal import print_result

    print_result(result)


def _fail(error: object, status: int) -> int:
    print(f"diffprune: {error}", file=sys.stderr)
    return status
