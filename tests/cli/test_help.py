"""`--help`: groups in the order of need, one line per option, choices and defaults, examples that run."""

import dataclasses
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from diffprune.cli.command import Command
from diffprune.cli.commands import COMMANDS
from diffprune.cli.help_layout import COLUMN, MAX_WIDTH, ROAD, help_of, overview
from diffprune.cli.main import main
from diffprune.cli.option_rows import FLAG_WIDTH, OptionRow, option_rows
from diffprune.cli.parser import CommandParser
from diffprune.options.option_help import GROUPS, MOST_USED, choices_of, group_of

ALL = pytest.mark.parametrize("name", COMMANDS)


def rows_of(command: Command) -> list[OptionRow]:
    return [row for rows in option_rows(command).values() for row in rows]


def fields_of(command: Command) -> dict[str, Any]:
    return {name: info for kind in command.options for name, info in kind.model_fields.items()}


@ALL
def test_every_option_is_in_exactly_one_group(name: str) -> None:
    command = COMMANDS[name]
    flags = {a.dest for a in CommandParser(name, command)._actions if a.option_strings} - {"help"}
    names = [row.name.replace("-", "_") for row in rows_of(command)]
    assert sorted(names) == sorted({*flags, "help_full"})
    assert list(option_rows(command)) == [title for title in GROUPS if title in option_rows(command)]


def test_every_listed_option_of_a_group_exists() -> None:
    kinds = {base for command in COMMANDS.values() for options in command.options for base in options.__mro__}
    for kind in kinds:
        for title, names in vars(kind).get("groups", {}).items():
            assert title in GROUPS
            assert set(names) <= kind.model_fields.keys(), kind
            assert {group_of(kind, name) for name in names} == {title}, f"{kind} lists an option twice"


@ALL
def test_every_option_takes_one_line_of_100_columns(name: str) -> None:
    command = COMMANDS[name]
    assert all(len(line) <= MAX_WIDTH for line in help_of(name, command, MAX_WIDTH, full=True).splitlines())
    for row in rows_of(command):
        assert len(row.flag) <= FLAG_WIDTH, row
        assert len(row.text) <= MAX_WIDTH - COLUMN, row
        assert not row.text.endswith("."), row
    assert all(len(text) <= MAX_WIDTH - COLUMN for text in command.positionals.values())
    assert len(command.summary) <= 70


@ALL
@pytest.mark.parametrize("width", [80, MAX_WIDTH])
def test_help_fits_the_terminal(name: str, width: int) -> None:
    lines = help_of(name, COMMANDS[name], width).splitlines()
    example = lines.index("example:")
    assert all(len(line) <= width for line in lines[:example])


@ALL
def test_choices_and_the_meaning_of_no_value_are_said(name: str) -> None:
    command = COMMANDS[name]
    text = help_of(name, command, 10_000)
    fields = fields_of(command)
    for row in rows_of(command):
        if row.name in fields:
            info = fields[row.name]
            shown = f"{row.flag} {row.text} {row.note}"
            assert all(choice in shown for choice in choices_of(info.annotation)), row
            assert row.flag in text
            if info.default is None:
                assert "(default" in row.text or "(required)" in row.text, row
            assert not row.is_choice or row.note in text


@ALL
def test_few_options_come_first(name: str) -> None:
    command = COMMANDS[name]
    assert len(command.most_used) in (0, 5)
    assert [row.name for row in option_rows(command).get(MOST_USED, [])] == list(command.most_used)
    usage = help_of(name, command, MAX_WIDTH).splitlines()[0]
    assert usage.startswith(f"usage: diffprune {name} ")
    assert len(usage) <= 80


def test_the_usage_of_prune_is_one_line() -> None:
    text = help_of("prune", COMMANDS["prune"], MAX_WIDTH)
    assert text.startswith("usage: diffprune prune MODEL [options] --out OUT\n\nPrune a model.\n")


def test_full_help_adds_the_details(capsys: pytest.CaptureFixture[str]) -> None:
    for flag, expected in (("--help", False), ("--help-full", True)):
        with pytest.raises(SystemExit) as end:
            main(["prune", flag])
        assert end.value.code == 0
        shown = " ".join(capsys.readouterr().out.split())  # as wide as the terminal of the test
        assert ("the last match counts" in shown) == expected


def test_the_commands_follow_an_experiment() -> None:
    lines = [line.strip() for line in overview(COMMANDS).splitlines()]
    shown = [name for line in lines for name in COMMANDS if line.startswith(f"{name}  ")]
    assert shown[: len(ROAD)] == list(ROAD)
    assert shown == list(COMMANDS)
    assert max(map(len, lines)) <= 95


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "diffprune", "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == overview(COMMANDS) + "\n"


# examples

NOT_RUN = ("demo", "train", "convert", "data", "stats")
"""Commands whose examples take minutes, an archive, a checkpoint or a download: only parsed here."""

SMALL = {
    "plan": ["--num-calibration-images", "8", "--timestep-stride", "250"],
    "prune": ["--num-calibration-images", "8", "--timestep-stride", "250", "--num-compensation-images", "16"],
    "finetune": ["--steps", "2", "--batch-size", "4"],
    "sample": ["--num", "4", "--steps", "2"],
    "analyze stages": ["--num-calibration-images", "8", "--timestep-stride", "250", "--num", "4", "--steps", "2"],
    "analyze sensitivity": ["--num-calibration-images", "8"],
}
"""What makes the examples small; the later value of an option counts."""


def commands_of(command: Command) -> list[list[str]]:
    return [shlex.split(line)[1:] for line in "\n".join(command.example).replace("\\\n", " ").splitlines()]


def name_of(words: list[str]) -> str:
    return next(name for name in COMMANDS if words[: len(name.split())] == name.split())


@ALL
def test_the_example_is_a_command_line(name: str) -> None:
    assert [name_of(words) for words in commands_of(COMMANDS[name])].count(name) == 1
    for words in commands_of(COMMANDS[name]):
        command = COMMANDS[name_of(words)]
        _, options = CommandParser(name_of(words), command).parse_command(words[len(name_of(words).split()) :])
        assert all(options(kind) is not None for kind in command.options if "recipe?" not in command.positionals)


def test_the_examples_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, command in COMMANDS.items():
        if name not in NOT_RUN:
            for words in commands_of(command):
                assert (
                    main(
                        [
                            *words,
                            *SMALL.get(name_of(words), []),
                            *(["--overwrite"] if command.overwrite and command.out else []),
                        ]
                    )
                    == 0
                ), words


def test_the_demo_ends_with_three_commands_that_are_valid(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = dataclasses.replace(COMMANDS["demo"], call=lambda *_: {"params": 1})
    assert len(demo.next_steps) == 3
    for line in demo.next_steps:
        name, *words = shlex.split(line)[1:]
        CommandParser(name, COMMANDS[name]).parse_command(words)
    monkeypatch.setattr("diffprune.cli.main.COMMANDS", {"demo": demo})
    assert main(["demo"]) == 0
    assert capsys.readouterr().out.endswith("Try next:\n  " + "\n  ".join(demo.next_steps) + "\n")
    assert main(["demo", "--json"]) == 0
    assert capsys.readouterr().out == '{"params": 1}\n'
