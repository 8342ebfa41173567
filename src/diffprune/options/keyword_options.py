"""Calling conventions of the public functions: option sets become keyword arguments, checked at once."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from diffprune.options import Options, parse_options

P = ParamSpec("P")
A = TypeVar("A")
B = TypeVar("B")
R = TypeVar("R")
Set = TypeVar("Set", bound=Options)


def with_options(
    kind: Callable[P, Set],
) -> Callable[[Callable[[A, Set], R]], Callable[Concatenate[A, P], R]]:
    """Turn `f(value, options)` into `f(value, **options)`; the keywords are the fields of the option set.

    Keyword-only parameters of the function, such as callbacks, are keywords as well and are not part of the set.
    The function raises OptionError that lists every wrong option at once.
    """

    def decorate(function: Callable[[A, Set], R]) -> Callable[Concatenate[A, P], R]:
        @functools.wraps(function)
        def call(*values: Any, **given: Any) -> R:
            bound, keywords, options = _bind(function, 1, values, given)
            chosen = parse_options(cast(type[Set], kind), options, what=f"options of {function.__name__}")
            return cast(R, cast(Any, function)(*bound, chosen, **keywords))

        _describe(call, function, cast(type[Options], kind), 1)
        return cast(Callable[Concatenate[A, P], R], call)

    return decorate


def with_input_and_options(
    kind: Callable[P, Set],
) -> Callable[[Callable[[A, B, Set], R]], Callable[Concatenate[A, B, P], R]]:
    """As `with_options`, for functions of two values."""

    def decorate(function: Callable[[A, B, Set], R]) -> Callable[Concatenate[A, B, P], R]:
        @functools.wraps(function)
        def call(*values: Any, **given: Any) -> R:
            bound, keywords, options = _bind(function, 2, values, given)
            chosen = parse_options(cast(type[Set], kind), options, what=f"options of {function.__name__}")
            return cast(R, cast(Any, function)(*bound, chosen, **keywords))

        _describe(call, function, cast(type[Options], kind), 2)
        return cast(Callable[Concatenate[A, B, P], R], call)

    return decorate


def _bind(
    function: Callable[..., Any], num_values: int, values: tuple[Any, ...], given: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, Any]]:
    """Split the arguments of a call into its values, the function's keyword-only arguments, and options."""
    parameters = list(inspect.signature(function).parameters.values())[:num_values]
    named = {p.name: given[p.name] for p in parameters if p.name in given}
    bound = inspect.Signature(parameters).bind(*values, **named)
    bound.apply_defaults()
    keywords = {p.name: given[p.name] for p in _keyword_only(function) if p.name in given}
    options = {name: value for name, value in given.items() if name not in named and name not in keywords}
    return bound.args, keywords, options


def _keyword_only(function: Callable[..., Any]) -> list[inspect.Parameter]:
    parameters = inspect.signature(function).parameters.values()
    return [parameter for parameter in parameters if parameter.kind == inspect.Parameter.KEYWORD_ONLY]


def _describe(call: Any, function: Any, kind: type[Options], num_values: int) -> None:
    own = inspect.signature(function)
    values = list(own.parameters.values())[:num_values]
    fields = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.is_required() else field.default,
            annotation=field.annotation,
        )
        for name, field in kind.model_fields.items()
        if name not in own.parameters
    ]
    call.__signature__ = own.replace(parameters=[*values, *_keyword_only(function), *fields])
    lines = [f"    {f.name}: {kind.model_fields[f.name].description}" for f in fields]
    call.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\nOptions:\n" + "\n".join(lines)
