"""The command line: parse, call a stage, print. Importing this imports no torch."""

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

from diffprune import options as sets
from diffprune.errors import DiffpruneError, OptionError
from diffprune.options import Options, parse_options

MODEL = "pipeline or denoiser folder, hub id, config.json, or a built-in name (digits, ddpm-cifar10, ...)"
IMAGES = "folder of images"
REFERENCE = "folder of images; for frechet_distance also a parquet file, a dataset id or `digits`"

Set = TypeVar("Set", bound=Options)
Arguments = argparse.Namespace


@dataclass(frozen=True)
class Command:
    """One command: its arguments beside the stage's options, and the call."""

    summary: str
    positionals: Mapping[str, str]
    options: tuple[type[Options], ...]
    call: Callable[[Arguments, "Given"], Any]
    out: Literal["required", "optional", "default", None] = None
    json: bool = True
    extras: tuple[tuple[str, str], ...] = ()


class Given:
    """The options of a command line, validated per option set."""

    def __init__(self, values: dict[str, str]) -> None:
        self._values = values

    def __call__(self, kind: type[Set], **more: Any) -> Set:
        """The values that belong to this option set, checked."""
        mine = {k: v for k, v in self._values.items() if k in kind.model_fields}
        return parse_options(kind, {**mine, **more}, what="command line")

    def names(self) -> set[str]:
        """The options that were given."""
        return set(self._values)


def _stage(module: str, name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        from diffusers.utils import logging

        logging.disable_progress_bar()
        return getattr(importlib.import_module(f"diffprune.stages.{module}"), name)(*args, **kwargs)

    return call


def _inspect(a: Arguments, given: Given) -> Any:
    return _stage("inspect", "inspect_stage")(a.model, given(sets.InspectOptions))


def _plan(a: Arguments, given: Given) -> Any:
    return _stage("plan", "plan_stage")(a.model, given(sets.PlanOptions), a.out, overwrite=a.overwrite)


def _prune(a: Arguments, given: Given) -> Any:
    chosen = given(sets.PruneOptions), given(sets.PlanOptions)
    plan = Path(a.plan) if a.plan else None
    return _stage("prune", "prune_stage")(a.model, *chosen, plan, a.out, overwrite=a.overwrite)


def _train(a: Arguments, given: Given) -> Any:
    if a.recipe is None:
        return _stage("train", "train_stage")(given(sets.TrainOptions), a.out, overwrite=a.overwrite)
    from diffprune.recipes import read_recipe

    recipe = read_recipe(Path(a.recipe))
    if recipe.train is None:
        raise OptionError(f"{a.recipe} has no train section")
    if given.names():
        raise OptionError(f"the recipe holds the options of train; drop {', '.join(sorted(given.names()))}")
    return _stage("train", "train_stage")(recipe.section("train"), a.out, overwrite=a.overwrite)


def _finetune(a: Arguments, given: Given) -> Any:
    options = given(sets.FinetuneOptions)
    return _stage("train", "finetune_stage")(a.model, a.teacher, options, a.out, overwrite=a.overwrite)


def _sample(a: Arguments, given: Given) -> Any:
    return _stage("sample", "sample_stage")(a.model, given(sets.SampleOptions), a.out, overwrite=a.overwrite)


def _evaluate(a: Arguments, given: Given) -> Any:
    options = given(sets.EvaluateOptions)
    return _stage("evaluate", "evaluate_stage")(a.images, a.reference, options, a.out, overwrite=a.overwrite)


def _report(a: Arguments, given: Given) -> Any:
    return _stage("report", "report_stage")([Path(d) for d in a.folders], a.out, title="diffprune")


def _run(a: Arguments, given: Given) -> Any:
    from diffprune.recipes import read_recipe

    return _stage("run", "run_stage")(read_recipe(Path(a.recipe)), a.out)


def _demo(a: Arguments, given: Given) -> Any:
    from diffprune.recipes import DEMO, read_recipe

    return _stage("run", "run_stage")(read_recipe(DEMO), a.out)


COMMANDS: Mapping[str, Command] = {
    "demo": Command("the whole road on handwritten digits, in minutes", {}, (), _demo, "default"),
    "inspect": Command("what a model is and costs", {"model": MODEL}, (sets.InspectOptions,), _inspect),
    "plan": Command("score units and choose which stay", {"model": MODEL}, (sets.PlanOptions,), _plan, "optional"),
    "prune": Command(
        "carry out a plan",
        {"model": MODEL},
        (sets.PlanOptions, sets.PruneOptions),
        _prune,
        "required",
        extras=(("plan", "plan.json to carry out, instead of the options of plan"),),
    ),
    "train": Command(
        "train a denoiser from scratch",
        {"recipe?": "recipe whose train section holds the options"},
        (sets.TrainOptions,),
        _train,
        "required",
    ),
    "finetune": Command(
        "recover a pruned model",
        {"model": MODEL},
        (sets.FinetuneOptions,),
        _finetune,
        "required",
        extras=(("teacher", "original model for output distillation (as MODEL)"),),
    ),
    "sample": Command("draw images", {"model": MODEL}, (sets.SampleOptions,), _sample, "required"),
    "evaluate": Command(
        "compare images with a reference",
        {"images": IMAGES, "reference": REFERENCE},
        (sets.EvaluateOptions,),
        _evaluate,
        "optional",
    ),
    "report": Command("one page of what stages left behind", {"folders+": "stage folders"}, (), _report, "required"),
    "run": Command("all stages of a recipe", {"recipe": "recipe (YAML)"}, (), _run, "required"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise OptionError(f"{message}\n{self.format_usage().strip().splitlines()[0]} ...; see --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 failed, 2 wrong usage."""
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
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _run_command(words: list[str]) -> int:
    name = words[0]
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, n=1)
        raise OptionError(f"no command {name!r}" + (f"; did you mean {near[0]!r}?" if near else "; see --help"))
    command = COMMANDS[name]
    parser = _parser(name, command)
    parsed, unknown = parser.parse_known_args(words[1:])
    if unknown:
        flags = [s for action in parser._actions for s in action.option_strings]
        near = get_close_matches(unknown[0].split("=")[0], flags, n=1)
        raise OptionError(f"no argument {unknown[0]!r}" + (f"; did you mean {near[0]}?" if near else "; see --help"))
    fields = {field for kind in command.options for field in kind.model_fields}
    given = Given({k: _value(v, k, command) for k, v in vars(parsed).items() if k in fields})
    result = command.call(parsed, given)
    if os.environ.get("RANK", "0") != "0":  # one of several processes: the first one speaks for all
        return 0
    if getattr(parsed, "json", False):
        print(json.dumps(result))
    else:
        _print(result)
    return 0


def _parser(name: str, command: Command) -> argparse.ArgumentParser:
    parser = _Parser(prog=f"diffprune {name}", description=command.summary, allow_abbrev=False)
    for positional, text in command.positionals.items():
        many = positional[-1] if positional[-1] in "?+" else None
        parser.add_argument(positional.rstrip("?+"), help=text, nargs=many)
    for flag, text in command.extras:
        parser.add_argument(f"--{flag}", help=text)
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
    many = "+" if get_origin(info.annotation) is tuple else None
    shown_value = _metavar(name, info.annotation)
    parser.add_argument(flag, default=argparse.SUPPRESS, metavar=shown_value, help=text, nargs=many)


def _metavar(name: str, annotation: Any) -> str:
    for part in (annotation, *get_args(annotation)):
        if get_origin(part) is Literal:
            return "{" + ",".join(map(str, get_args(part))) + "}"
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
    from diffprune.reporting.terminal import print_result

    print_result(result)


def _fail(error: object, status: int) -> int:
    print(f"diffprune: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
