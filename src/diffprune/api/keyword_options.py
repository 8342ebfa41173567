"""Turn a function that takes option sets into one that takes their fields as keyword arguments."""

import functools
import hashlib
import inspect
import json
import operator
import re
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from diffprune.compute.torch_context import default_torch_context
from diffprune.data.memory_images import data_source
from diffprune.errors import OptionError
from diffprune.options import Options, parse_options
from diffprune.options.in_memory import InMemory, in_memory
from diffprune.options.option_help import GROUPS, group_of, in_order_of_need

R = TypeVar("R")

IN_MEMORY = {
    "data": (
        "str | os.PathLike[str] | Sequence[Any] | PIL.Image.Image | torch.Tensor | torch.utils.data.Dataset | "
        "datasets.Dataset",
        "also images in memory: a list of PIL images or paths, a tensor (N, C, H, W) in [-1, 1], or a 🤗 or torch "
        "data set",
    ),
    "prompts": ("str | os.PathLike[str] | Sequence[str]", "also a list of texts"),
}
"""Options that name a file and accept values in memory -> type and note. Types are text: `datasets` loads slowly."""


def with_options(
    *, without: Collection[str] = (), **kinds: type[Options]
) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Decorate a function whose parameters named in `kinds` are option sets.

    The result takes the fields of these sets as keyword arguments, and its signature and docstring name them.
    A field of two sets is passed to both. without: fields that are not arguments.
    The function runs in PyTorch's default settings, whatever settings the caller has changed.
    The decorated function raises OptionError that lists every wrong option at once, and TypeError for missing or
    superfluous positional arguments.
    """

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        own = inspect.signature(function)
        values = [parameter for parameter in own.parameters.values() if parameter.name not in kinds]
        titles = {name: title for name, title in _titles(kinds).items() if name not in {*own.parameters, *without}}
        fields = {name: _field(name, kinds) for name in titles}

        @functools.wraps(function)
        @default_torch_context()
        def call(*arguments: Any, **keywords: Any) -> R:
            named = {p.name: keywords.pop(p.name) for p in values if p.name in keywords}
            try:
                bound = inspect.Signature(values).bind(*arguments, **named)
            except TypeError as error:
                name = function.__name__
                raise TypeError(f"{name}: {error}; help(diffprune.{name}) lists its arguments") from None
            return function(*bound.args, **bound.kwargs, **_parse(function.__name__, kinds, fields, keywords))

        signature: Any = call
        signature.__signature__ = own.replace(parameters=[*values, *(_parameter(n, i) for n, i in fields.items())])
        signature.option_fields = fields
        signature.__doc__ = inspect.cleandoc(function.__doc__ or "") + _option_texts(titles, fields)
        return call

    return decorate


def _titles(kinds: Mapping[str, type[Options]]) -> dict[str, str]:
    """Return the help group of each option, by name, in the order of need."""
    titles = {name: group_of(kind, name) for kind in kinds.values() for name in in_order_of_need(kind)}
    return dict(sorted(titles.items(), key=lambda item: GROUPS.index(item[1])))


def _field(name: str, kinds: Mapping[str, type[Options]]) -> Any:
    return next(kind.model_fields[name] for kind in kinds.values() if name in kind.model_fields)


def _option_texts(titles: Mapping[str, str], fields: Mapping[str, Any]) -> str:
    lines, last = [], ""
    for name, title in titles.items():
        if title != last:
            lines += ["", f"Options: {title}"]
            last = title
        text = re.sub(r"--([a-z][a-z-]*)", lambda flag: flag[1].replace("-", "_"), fields[name].description or "")
        if name in IN_MEMORY:
            text += f"\n{IN_MEMORY[name][1]}"
        first, *more = text.splitlines()
        lines += [f"    {name}: {first}{_default(fields[name])}", *(f"        {line}" for line in more)]
    return "\n" + "\n".join(lines)


def _parse(
    function: str, kinds: Mapping[str, type[Options]], fields: Mapping[str, Any], keywords: Mapping[str, Any]
) -> dict[str, Options]:
    mistakes = [_unknown(name, fields) for name in keywords if name not in fields]
    known = {name: _value(name, value) for name, value in keywords.items() if name in fields}
    parsed: dict[str, Options] = {}
    for parameter, kind in kinds.items():
        try:
            values = {name: value for name, value in known.items() if name in kind.model_fields}
            parsed[parameter] = parse_options(kind, values, what="")
        except OptionError as error:
            mistakes += str(error).splitlines()[1:]
    if mistakes:
        raise OptionError(f"options of {function}:\n" + "\n".join(dict.fromkeys(mistakes)))
    return parsed


def _value(name: str, value: Any) -> Any:
    if name == "data" and value is not None:
        return data_source(value)
    if name == "prompts" and isinstance(value, list | tuple):
        return _prompts(value)
    return value


def _prompts(texts: Sequence[Any]) -> InMemory:
    """Return prompts in memory as a source; raise OptionError for anything except texts."""
    wrong = next((text for text in texts if not isinstance(text, str)), None)
    if wrong is not None or not texts:
        raise OptionError(
            f"prompts: got {wrong!r}, expected texts" if texts else "prompts: got an empty list, expected texts"
        )
    digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    return in_memory(f"{len(texts)} prompt{'s' * (len(texts) != 1)}", type(texts).__name__, digest, tuple(texts))


def _unknown(name: str, fields: Mapping[str, Any]) -> str:
    near = get_close_matches(name, fields, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(fields)}"
    return f"  {name}: no such option; {hint}"


def _parameter(name: str, info: Any) -> inspect.Parameter:
    default = inspect.Parameter.empty if info.is_required() else info.default
    kind = _bare(info.annotation)
    if name in IN_MEMORY:
        kind = IN_MEMORY[name][0] + " | None" * (default is None)
    elif default is None and type(None) not in get_args(kind):
        kind |= None  # a validator computes the default from other options
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def _bare(annotation: Any) -> Any:
    """Return a type annotation without validators."""
    if get_origin(annotation) is Annotated:
        return get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        return functools.reduce(operator.or_, map(_bare, get_args(annotation)))
    return annotation


def _default(info: Any) -> str:
    has_default = "(default" in (info.description or "") or info.is_required() or info.default in (None, ())
    return "" if has_default else f" (default: {info.default!r})"
