"""Make src/diffprune/__init__.pyi from the public names and their option sets: python scripts/make_stub.py."""

import inspect
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import diffprune

STUB = Path(__file__).parents[1] / "src" / "diffprune" / "__init__.pyi"

HEAD = """\
# Made by scripts/make_stub.py from the option sets; do not edit.
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, overload

import torch
from datasets import Dataset
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset

"""

TYPES = """\

__version__: str

_Path: TypeAlias = str | os.PathLike[str]
_Pipeline: TypeAlias = DiffusionPipeline
_Model: TypeAlias = _Pipeline | nn.Module | _Path
_Images: TypeAlias = _Path | Dataset | TorchDataset[Any] | Sequence[Any] | Image.Image | Tensor
_M = TypeVar("_M", bound=_Pipeline | nn.Module)

def __getattr__(name: str) -> Any: ...
"""

VALUES = {
    "model": "_Model", "teacher": "_Model | None", "images": "_Images", "reference": "_Images | None",
    "data": "_Images | None", "prompts": "_Path | Sequence[str] | None", "on_step": "OnStep | None",
}  # fmt: skip
"""Types of arguments that are Any in the source, since the functions check them."""

RETURNED = {"train": "_Pipeline", "convert": "_Pipeline | nn.Module"}
"""Types of results that are Any in the source."""

SAME_MODEL = ("prune", "finetune")
"""Functions that return what they take: a pipeline for a pipeline, a denoiser for a denoiser."""


def stub() -> str:
    """Return the text of the stub."""
    imports, functions = ["from diffprune.training.step_callback import OnStep"], []
    for name in diffprune.__all__:
        value, home = getattr(diffprune, name), diffprune._HOMES[name]
        if isinstance(value, types.FunctionType) and home.startswith("diffprune.api."):
            functions += ["", *definition(name, value)]
        else:
            imports.append(f"from {home} import {name} as {name}")
    return HEAD + "\n".join(sorted(imports)) + "\n" + TYPES + "\n".join(functions) + "\n"


def definition(name: str, function: types.FunctionType) -> list[str]:
    """Return the lines of a function's signature; two of it if the type of the result depends on the arguments."""
    if name == "sample":
        in_memory = signature(name, function, {"out": "None"}, "list[Image.Image]")
        return ["@overload", *in_memory, "@overload", *signature(name, function, {"out": "_Path"}, "list[Path]")]
    if name not in SAME_MODEL:
        return signature(name, function, {}, RETURNED.get(name))
    same = signature(name, function, {"model": "_M"}, "_M")
    loaded = signature(name, function, {"model": "_Path"}, "_Pipeline" if name == "finetune" else "Any")
    return ["@overload", *same, "@overload", *loaded]


def signature(name: str, function: Any, changed: Mapping[str, str], returned: str | None) -> list[str]:
    """Return the lines of `def name(...)`, an argument a line."""
    fields = getattr(function, "option_fields", {})
    whole = inspect.signature(function, eval_str=True)
    lines, starred = [f"def {name}("], False
    for parameter in whole.parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not starred:
            lines, starred = [*lines, "    *,"], True
        lines.append(f"    {argument(parameter, parameter.name in fields, changed)},")
    return [*lines, f") -> {returned or text_of(whole.return_annotation)}: ..."]


def argument(parameter: inspect.Parameter, is_option: bool, changed: Mapping[str, str]) -> str:
    """Return an argument with its type and default."""
    kind = changed.get(parameter.name) or (
        VALUES.get(parameter.name) if parameter.name != "data" or is_option else None
    )
    if kind is None and parameter.name == "data":
        kind = "_Images"
    if kind is None:
        kind = option_type(parameter.name, parameter.annotation) if is_option else text_of(parameter.annotation)
    if parameter.name in changed and "None" not in kind:
        return f"{parameter.name}: {kind}"
    if parameter.default is None and "None" not in kind and kind != "Any":
        kind += " | None"
    if parameter.default is inspect.Parameter.empty:
        return f"{parameter.name}: {kind}"
    return f"{parameter.name}: {kind} = {default_of(parameter.default)}"


def default_of(value: Any) -> str:
    """Return a default as text; `...` for one that is no literal."""
    return repr(value) if isinstance(value, str | int | float | tuple | None) else "..."


def option_type(name: str, annotation: Any) -> str:
    """Return the type of an option, and what is converted to it: single values, paths, torch devices and dtypes."""
    parts = [text_of(annotation)]
    inner = (annotation, *get_args(annotation))
    if any(Path in (part, *get_args(part)) for part in inner):
        parts = ["_Path", *(["None"] if type(None) in inner else [])]
    for part in inner:
        if get_origin(part) is tuple and Ellipsis in get_args(part):
            item = text_of(get_args(part)[0])
            parts = [item, f"Sequence[{item}]", *(["None"] if type(None) in inner else [])]
    if name == "device":
        parts.append("torch.device")
    if name in ("mixed_precision", "teacher_dtype"):
        parts.append("torch.dtype")
    if name == "classes":
        parts.append("int | Sequence[int]")
    return " | ".join(parts)


def text_of(annotation: Any) -> str:
    """Return a type as it is written."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is type(None) or annotation is None:
        return "None"
    if origin is Annotated:
        return text_of(arguments[0])
    if origin in (Union, types.UnionType):
        return " | ".join(dict.fromkeys(map(text_of, arguments)))
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, arguments))}]"
    if origin is not None:
        inner = ", ".join("..." if part is Ellipsis else text_of(part) for part in arguments)
        return f"{qualified(origin)}[{inner}]"
    return qualified(annotation)


def qualified(kind: Any) -> str:
    """Return the name of a class as the stub imports it."""
    return "os.PathLike" if kind.__name__ == "PathLike" else str(kind.__name__)


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(STUB.read_text() != stub())
    STUB.write_text(stub())
