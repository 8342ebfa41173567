"""The text of `--help`: usage, the options by help group, and an example. Imports no torch."""

import shutil
import textwrap
from collections.abc import Mapping

from diffprune.cli.command import Command
from diffprune.cli.option_rows import FLAG_WIDTH, option_rows

MIN_WIDTH, MAX_WIDTH = 60, 100
COLUMN = FLAG_WIDTH + 4
"""Column at which descriptions start."""

ROAD = ("inspect", "plan", "prune", "finetune", "sample", "evaluate", "report", "run")
"""The commands of an experiment in the order of their use."""


def help_width() -> int:
    """Return the columns of the terminal, at least 60 and at most 100."""
    return max(MIN_WIDTH, min(MAX_WIDTH, shutil.get_terminal_size((MAX_WIDTH, 24)).columns))


def usage_of(name: str, command: Command) -> str:
    """Return the usage in one line, such as `usage: diffprune prune MODEL [options] --out OUT`."""
    out = {"required": ["--out OUT"], "optional": ["[--out OUT]"]}.get(command.out or "", [])
    return " ".join(["usage: diffprune", name, *map(_positional, command.positionals), "[options]", *out])


def help_of(name: str, command: Command, width: int, *, full: bool = False) -> str:
    """Return the help of one command, in lines of at most `width` columns: one line per option, and its choices.

    full: add the details of all options.
    """
    parts = [[usage_of(name, command)], textwrap.wrap(f"{command.summary[0].upper()}{command.summary[1:]}.", width)]
    if command.positionals:
        entries = [_entry(_positional(key), text, "", width) for key, text in command.positionals.items()]
        parts.append([line for entry in entries for line in entry])
    for title, rows in option_rows(command).items():
        entries = [_entry(r.flag, r.text, r.note if full or r.is_choice else "", width) for r in rows]
        parts.append([f"{title}:", *(line for entry in entries for line in entry)])
    parts.append(["example:", *(f"  {line}" for line in command.example)])
    return "\n\n".join("\n".join(lines) for lines in parts) + "\n"


def overview(commands: Mapping[str, Command]) -> str:
    """Return the help of diffprune itself: the commands of an experiment in their order, then the others."""
    column = max(map(len, commands)) + 2

    def listed(names: list[str]) -> list[str]:
        return [f"  {name:<{column}}{commands[name].summary}" for name in names]

    return "\n".join(
        [
            "usage: diffprune COMMAND [options]",
            "",
            "Prune pretrained diffusion models, recover them, and evaluate their images.",
            "",
            "an experiment, step by step:",
            *listed(list(ROAD)),
            "",
            "other commands:",
            *listed([name for name in commands if name not in ROAD]),
            "",
            "`diffprune COMMAND --help` explains a command. `diffprune demo` runs a small experiment.",
        ]
    )


def _positional(key: str) -> str:
    name = key.rstrip("?+").upper()
    return {"?": f"[{name}]", "+": f"{name} ..."}.get(key[-1], name)


def _entry(flag: str, text: str, note: str, width: int) -> list[str]:
    """The lines of one option: the flag, the description beginning at `COLUMN`, the note below it."""
    texts = [*textwrap.wrap(text, width - COLUMN), *textwrap.wrap(note, width - COLUMN)]
    if len(flag) > FLAG_WIDTH:
        return [f"  {flag}", *(" " * COLUMN + line for line in texts)]
    return [f"  {flag:<{COLUMN - 2}}{texts[0]}", *(" " * COLUMN + line for line in texts[1:])]
