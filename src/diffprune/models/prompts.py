"""Prompts: a text file, one a line. Imports no torch."""

from pathlib import Path

from diffprune.errors import OptionError


def read_prompts(path: Path) -> list[str]:
    """The lines of a text file; raises OptionError when it cannot be read or holds none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"cannot read the prompts {path}: {error}") from error
    if not any(line.strip() for line in lines):
        raise OptionError(f"{path} holds no prompts; expected one a line")
    return lines
