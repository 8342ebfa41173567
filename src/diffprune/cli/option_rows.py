"""The rows of a command's help: for each option its flag, its description with the default, and its help group."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from diffprune.cli.command import Argument, Command
from diffprune.options.option_help import (
    GROUPS,
    MOST_USED,
    choices_of,
    group_of,
    in_order_of_need,
    parts_of,
    shown_default,
)

FLAG_WIDTH = 29
"""Columns of the longest flag with its value, such as `--num-compensation-images N`."""

DEMO_FOLDER = "diffprune-demo"


@dataclass(frozen=True)
class OptionRow:
    """One option as `--help` shows it.

    flag: the flag and its value, such as `--ratio RATIO ...`. text: one line, with the default.
    note: details of one or two lines; empty if there are none. is_choice: whether the note lists what the option takes.
    """

    name: str
    flag: str
    text: str
    note: str
    group: str
    is_choice: bool = False


def option_rows(command: Command) -> dict[str, list[OptionRow]]:
    """Return the options of a command by help group, the groups and the options in the order of need."""
    rows = [_row_of_argument(argument) for argument in command.arguments]
    for kind in command.options:
        rows += [_row_of_field(name, kind.model_fields[name], group_of(kind, name)) for name in in_order_of_need(kind)]
    rows += [_row_of_argument(argument) for argument in output_arguments(command)]
    by_name = {row.name: row for row in reversed(rows)}
    first = [by_name[name] for name in command.most_used]
    others = [row for row in dict.fromkeys(by_name[row.name] for row in rows) if row.name not in command.most_used]
    groups = {title: [row for row in others if row.group == title] for title in GROUPS}
    return {title: listed for title, listed in {**groups, MOST_USED: first}.items() if listed}


def output_arguments(command: Command) -> list[Argument]:
    """Return the arguments that say where a result goes."""
    arguments = []
    if command.out is not None:
        text = f"folder to write (default: {DEMO_FOLDER})" if command.out == "default" else "where to write the result"
        hint = " (default: write nothing)" if command.out == "optional" else ""
        arguments.append(Argument("out", text + hint, "output", "OUT"))
    if command.out is not None and command.overwrite:
        arguments.append(Argument("overwrite", "replace a result that has other options", "output", flag=True))
    return [
        *arguments,
        Argument("json", "print one JSON object on standard output", "output", flag=True),
        Argument("help-full", "print this help with the details of each option", "output", flag=True),
    ]


def metavar_of(name: str, annotation: Any) -> str:
    """Return what stands for an option's value in the help: its choices where they are short, else a noun."""
    choices = choices_of(annotation)
    shown = "{" + ",".join(choices) + "}"
    if choices and nargs_of(annotation) is None and len(f"--{name} {shown}") <= FLAG_WIDTH:
        return shown
    if choices:
        return "NAME"
    parts = parts_of(annotation)
    is_mapping = any(get_origin(part) is Mapping for part in parts)
    if not is_mapping and (int in parts or float in parts):
        return "N" if int in parts else "X"
    return "FILE" if Path in parts else name.rpartition("_")[2].upper()


def nargs_of(annotation: Any) -> str | int | None:
    """Return how many words an option takes: the length of a tuple, any number for a mapping, else one."""
    for part in (annotation, *get_args(annotation)):
        if get_origin(part) is tuple:
            return "+" if Ellipsis in get_args(part) else len(get_args(part))
        if get_origin(part) is Mapping:
            return "+"
    return None


def _row_of_field(name: str, info: Any, group: str) -> OptionRow:
    text, _, note = info.description.partition("\n")
    flag = "--" + name.replace("_", "-")
    if info.annotation is bool:
        return OptionRow(
            name, f"--[no-]{flag[2:]}", f"{text} (default: {'on' if info.default else 'off'})", note, group
        )
    metavar, number = metavar_of(name, info.annotation), nargs_of(info.annotation)
    value = f"{metavar} ..." if number == "+" else " ".join([metavar] * int(number or 1))
    choices = choices_of(info.annotation)
    is_choice = bool(choices) and not metavar.startswith("{")
    if is_choice and not note:
        note = f"{'any' if number else 'one'} of {', '.join(choices)}"
    default = "" if info.default is None else f" (default: {shown_default(info.default)})"
    return OptionRow(name, f"{flag} {value}", text + default, note, group, is_choice)


def _row_of_argument(argument: Argument) -> OptionRow:
    value = "" if argument.flag else f" {argument.metavar}" + (" ..." if argument.many else "")
    text, _, note = argument.description.partition("\n")
    return OptionRow(argument.name, f"--{argument.name.replace('_', '-')}{value}", text, note, argument.group)
