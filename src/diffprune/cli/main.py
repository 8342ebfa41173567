"""The command line: parse, call a command, print its result. Importing this imports no torch."""

import importlib
import json
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from diffprune.cli.commands import COMMANDS
from diffprune.cli.help_layout import overview
from diffprune.cli.missing_inputs import refuse_missing_inputs
from diffprune.cli.option_flags import with_flags
from diffprune.cli.parser import CommandParser, fields_of
from diffprune.errors import DiffpruneError, Interrupted, OptionError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status: 0 success, 1 failure, 2 wrong usage, 128 + N for signal N."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(overview(COMMANDS))
        return 0
    if words[0] == "--version":
        print(importlib.import_module("diffprune").__version__)
        return 0
    try:
        return _run_command(words)
    except OptionError as error:
        return _fail(_with_flags(error, words), 2)
    except DiffpruneError as error:
        return _fail(_with_flags(error, words), 1)
    except Interrupted as error:
        _leave_process_group()
        return _fail(error, 128 + error.signal)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _command_name(words: Sequence[str]) -> str:
    return " ".join(words[: 2 if any(known.startswith(f"{words[0]} ") for known in COMMANDS) else 1])


def _with_flags(error: DiffpruneError, words: Sequence[str]) -> str:
    """Return the message of an error, with the options of the command as flags."""
    command = COMMANDS.get(_command_name(words))
    return with_flags(str(error), () if command is None else fields_of(command))


def _run_command(words: list[str]) -> int:
    name = _command_name(words)
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, n=1)
        raise OptionError(f"no command {name!r}; " + (f"did you mean {near[0]!r}?" if near else "see --help"))
    command = COMMANDS[name]
    parsed, options = CommandParser(name, command).parse_command(words[len(name.split()) :])
    refuse_missing_inputs(vars(parsed))
    result = command.call(parsed, options)
    _leave_process_group()
    if os.environ.get("RANK", "0") == "0":
        _print(result, as_json=parsed.json)
        if command.next_steps and not parsed.json:
            print("\nTry next:", *command.next_steps, sep="\n  ")
    return 0


def _print(result: Any, *, as_json: bool) -> None:
    """Print a result on standard output: as JSON, as it is where it is text, else as tables."""
    if as_json:
        print(json.dumps(result))
    elif isinstance(result, str):
        print(result, end="")
    else:
        from diffprune.cli.terminal import print_result

        print_result(result)


def _leave_process_group() -> None:
    if "RANK" in os.environ:  # started by a launcher of several processes
        importlib.import_module("diffprune.runs.distributed").leave_process_group()


def _fail(error: object, status: int) -> int:
    print(f"diffprune: {error}", file=sys.stderr)
    return status
