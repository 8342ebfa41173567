"""Generate the reference pages from the code while mkdocs builds the site. Imports no torch."""

import re
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from diffprune.cli.commands import COMMANDS, Command
from diffprune.cli.help_layout import usage_of
from diffprune.cli.option_rows import option_rows
from diffprune.options import Options
from diffprune.options.recipe import Recipe

ROOT = Path(__file__).parents[1]


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages; called by mkdocs."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def pages() -> dict[str, str]:
    """Return the Markdown of each generated page, by path below docs/."""
    commands = {f"reference/cli/{slug(name)}.md": command_page(name, c) for name, c in COMMANDS.items()}
    examples = {f"examples/{p.stem}.md": example_page(p) for p in sorted((ROOT / "examples").glob("*.py"))}
    return {
        **examples,
        "reference/cli/index.md": command_index(),
        **commands,
        "reference/recipe.md": recipe_page(),
        "changelog.md": copied_page("CHANGELOG.md", "After this page you know what each version contains."),
        "contributing.md": copied_page("CONTRIBUTING.md"),
        "benchmarks/scripts.md": copied_page("benchmarks/README.md"),
    }


def slug(command: str) -> str:
    """Return the file name of a command's page, without its ending."""
    return command.replace(" ", "-")


def command_index() -> str:
    """Return the page that lists all commands."""
    rows = [f"| [`{name}`]({slug(name)}.md) | {cell(c.summary)} |" for name, c in COMMANDS.items()]
    head = (
        "# Command line\n\nAfter this page you know which command does what. Each links to its options.\n\n"
        "```text\ndiffprune COMMAND [options]\n```\n\n| command | purpose |\n|---|---|\n"
    )
    tail = (
        "\n\n`python -m diffprune` is the same program. [Errors](../errors.md) lists the exit statuses. `--json` "
        "prints one JSON object, described under [results](../run-json.md#results).\n"
    )
    return head + "\n".join(rows) + tail


def command_page(name: str, command: Command) -> str:
    """Return the page of one command: usage, example, arguments, and options by group."""
    usage = usage_of(name, command).removeprefix("usage: ")
    lines = [
        f"# diffprune {name}",
        "",
        f"After this page you know every option of `diffprune {name}`. Its purpose: {command.summary}.",
        "",
        "```text",
        usage,
        "```",
        "",
    ]
    if command.positionals:
        lines += ["| argument | meaning |", "|---|---|"]
        lines += [f"| `{key.rstrip('?+').upper()}` | {cell(text)} |" for key, text in command.positionals.items()]
    lines += ["", "For example:", "", "```text", *command.example, "```"]
    for title, rows in option_rows(command).items():
        lines += ["", f"## {title[0].upper()}{title[1:]}", "", "| option | meaning |", "|---|---|"]
        lines += [f"| `{row.flag}` | {cell(row.text)}{f'<br>{cell(row.note)}' if row.note else ''} |" for row in rows]
    return "\n".join(lines) + "\n"


def recipe_page() -> str:
    """Return the schema of recipes: the keys of a recipe, then the options of each section."""
    lines = [
        "# Recipe schema",
        "",
        "After this page you know every section and option of a recipe, with its type and default.",
        "",
        "A recipe is a YAML file. [Run a recipe](../how-to/run-a-recipe.md) shows how to use one. Sections are stages; "
        "a stage without a section is not run.",
        "",
        "| key | type | meaning |",
        "|---|---|---|",
    ]
    sections: dict[str, type[Options]] = {}
    for name, field in Recipe.model_fields.items():
        section = next((t for t in (field.annotation, *get_args(field.annotation)) if is_section(t)), None)
        if section:
            sections[name] = section
        kind = f"[section](#{name})" if section else f"`{type_name(field.annotation)}`"
        lines.append(f"| `{name}` | {kind} | {cell(field.description)} |")
    for name, section in sections.items():
        lines += ["", f"## {name}", "", "| option | type | default | meaning |", "|---|---|---|---|"]
        for option, field in section.model_fields.items():
            default = "required" if field.is_required() else f"`{shown(field.default)}`"
            lines.append(
                f"| `{option}` | {cell(type_name(field.annotation))} | {default} | {cell(field.description)} |"
            )
    return "\n".join(lines) + "\n"


def example_page(path: Path) -> str:
    """Return an example as a page: its Markdown cells as text, its code cells as blocks."""
    parts = []
    for cell_text in re.split(r"^# %% ?", path.read_text(), flags=re.MULTILINE)[1:]:
        kind, _, body = cell_text.partition("\n")
        if kind == "[markdown]":
            parts.append(re.sub(r"^# ?", "", body, flags=re.MULTILINE).strip())
        else:
            parts.append(f"```python\n{body.strip()}\n```")
    return "\n\n".join(parts) + "\n"


def copied_page(source: str, opening: str = "") -> str:
    """Return a page of the repository with its links moved to the site."""
    text = (ROOT / source).read_text()
    text = re.sub(r"\]\((?:\.\./)?docs/", "](" + "../" * (source.count("/")), text)
    return text.replace("\n\n", f"\n\n{opening}\n\n", 1) if opening else text


def is_section(annotation: Any) -> bool:
    """Return whether a recipe key holds the options of a stage."""
    return isinstance(annotation, type) and issubclass(annotation, Options)


def type_name(annotation: Any) -> str:
    """Return a type in plain words: `number`, `text`, a list of choices."""
    if get_origin(annotation) is Literal:
        return ", ".join(map(str, get_args(annotation)))
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(type_name(part) for part in get_args(annotation) if part is not NoneType)
    if get_origin(annotation) is tuple:
        return f"list of {type_name(get_args(annotation)[0])}"
    if get_origin(annotation) is not None and get_args(annotation):
        if len(get_args(annotation)) == 2:
            return f"mapping to {type_name(get_args(annotation)[1])}"
        return type_name(get_args(annotation)[0])
    names = {str: "text", int: "integer", float: "number", bool: "true or false"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def shown(default: Any) -> str:
    """Return a default as YAML would hold it."""
    if isinstance(default, tuple):
        return "[" + ", ".join(map(str, default)) + "]"
    if default is None or isinstance(default, bool):
        return {None: "null", True: "true", False: "false"}[default]
    return str(default)


def cell(text: str | None) -> str:
    """Return text that fits into one cell of a Markdown table."""
    return (text or "").replace("|", "\\|").replace("\n", " ").replace("*", "\\*").replace("<", "&lt;")
