"""Generate the reference pages from the code while mkdocs builds the site. Imports no torch."""

import re
from itertools import groupby
from pathlib import Path
from typing import Any

from diffprune.cli.commands import COMMANDS, Command
from diffprune.cli.help_layout import usage_of
from diffprune.cli.option_rows import option_rows
from diffprune.options.recipe import Recipe
from diffprune.options.recipe_schema import recipe_schema, section_class

ROOT = Path(__file__).parents[1]


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages; called by mkdocs."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page whose links to example scripts lead to their pages on the site; called by mkdocs.

    In the repository the same links lead to the scripts.
    """
    return re.sub(r"\]\(((?:\.\./)*)\.\./examples/(\w+)\.py\)", r"](\1examples/\2.md)", markdown)


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
    """Return the schema of recipes: the sections and the options at the top, then the options of each section."""
    lines = [
        "# Recipe schema",
        "",
        "After this page you know every section and option of a recipe, with its type and default.",
        "",
        "A recipe is a YAML file. [Run a recipe](../how-to/run-a-recipe.md) shows how to use one. Sections are stages, "
        "which run in this order. The default of a required option is `-`.",
        "",
    ]
    described = Recipe.model_fields
    sections = [name for name in described if section_class(name) is not None]
    lines += [f"- [`{name}`](#{name}): {cell(described[name].description)}" for name in sections]
    for section, entries in groupby(recipe_schema(), key=lambda entry: entry.section):
        lines += ["", f"## {section or 'Top of the file'}", "", "| option | type | default | meaning |"]
        lines += ["|---|---|---|---|"]
        lines += [f"| `{e.option}` | {cell(e.type)} | `{e.default}` | {cell(e.description)} |" for e in entries]
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


def cell(text: str | None) -> str:
    """Return text that fits into one cell of a Markdown table."""
    return (text or "").replace("|", "\\|").replace("\n", " ").replace("*", "\\*").replace("<", "&lt;")
