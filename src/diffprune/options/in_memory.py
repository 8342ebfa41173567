"""Accept images or prompts in memory wherever an option names a file. Imports no torch."""

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import PlainSerializer, ValidatorFunctionWrapHandler, WrapValidator

_DESCRIPTION = re.compile(r"in memory \(.*\), sha256 [0-9a-f]{16}$")


class InMemory(str):
    """The description of a value, such as `16 images in memory (list), sha256 0a1b...`, together with the value.

    A string, so that run.json and error messages show the description where the name of a file would stand.
    """

    value: Any

    def __new__(cls, description: str, value: Any) -> "InMemory":
        """Attach a value to its description."""
        named = super().__new__(cls, description)
        named.value = value
        return named

    def __getnewargs__(self) -> tuple[str, Any]:  # type: ignore[override]
        return str(self), self.value


def in_memory(what: str, kind: str, sha256: str, value: Any) -> InMemory:
    """Describe a value. what: such as `16 images`; kind: its type; sha256: hexadecimal digits of its content hash."""
    return InMemory(f"{what} in memory ({kind}), sha256 {sha256[:16]}", value)


def describes_memory(name: str) -> bool:
    """Return whether a name is the description of a value that was in memory."""
    return _DESCRIPTION.search(name) is not None


def _keep(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    return value if isinstance(value, InMemory) else validate(value)


DataSource = Annotated[str, WrapValidator(_keep)]
"""DATA: a path, a dataset id, a built-in name, or images in memory."""

PromptSource = Annotated[Path, WrapValidator(_keep), PlainSerializer(str, when_used="json")]
"""The file of prompts, or prompts in memory."""
