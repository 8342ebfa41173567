"""Base of all option sets: validation that reports all mistakes at once, and the options of the device."""

import os
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from diffprune.errors import OptionError
from diffprune.options.in_memory import InMemory

Groups = Mapping[str, tuple[str, ...]]
"""Help group -> its options, the most needed first."""


class Options(BaseModel):
    """Base of all option sets: frozen; raises for unknown names.

    Options that exclude each other are checked on the later field, so that all mistakes are reported together
    (a check of the whole set would run only once every field is valid).
    """

    neutral: ClassVar[frozenset[str]] = frozenset()
    """Options that do not change the result: an interrupted run may resume with other values."""

    groups: ClassVar[Groups] = {}
    """The help groups of the options that this class adds or moves (see `option_help`)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _accept_python_values(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        fields = cls.model_fields
        return {k: plain_value(v, fields[k].annotation if k in fields else None) for k, v in values.items()}

    def resolved(self) -> dict[str, Any]:
        """Return all options as JSON types, for `run.json`; data in memory keep their value with the description."""
        memory = {name: value for name, value in self if isinstance(value, InMemory)}
        return {**self.model_dump(mode="json"), **memory}

    def decisive(self) -> dict[str, Any]:
        """Return the options that are not neutral, as JSON types."""
        return {name: value for name, value in self.resolved().items() if name not in self.neutral}


_DTYPES = {"torch.bfloat16": "bf16", "torch.float16": "fp16", "torch.float32": "no"}


def plain_value(value: Any, annotation: Any) -> Any:
    """Return a value of Python as an option takes it: paths and torch devices as text, dtypes by their short names.

    A single value becomes a tuple where the option is one; numbers become text where the option is text.
    """
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    parts = (annotation, *get_args(annotation))
    if type(value).__module__ == "torch":  # compared by name, so that torch is not imported
        name = _DTYPES.get(str(value), str(value))
        choices = [choice for part in parts if get_origin(part) is Literal for choice in get_args(part)]
        return "fp32" if name == "no" and "fp32" in choices else name
    if isinstance(value, str | int | float) and any(get_origin(p) is tuple and ... in get_args(p) for p in parts):
        return (value,)
    if str in parts and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value


class DeviceOptions(Options):
    """Device of a stage."""

    neutral = frozenset({"device"})

    groups: ClassVar[Groups] = {"device and memory": ("device",)}

    device: str = Field(default="auto", description="torch device; auto: a GPU if there is one")


class ComputeOptions(DeviceOptions):
    """Device and seed of a stage."""

    groups: ClassVar[Groups] = {"output": ("seed",)}

    seed: int = Field(default=0, ge=0, description="seed of all random numbers")


class PrecisionOptions(DeviceOptions):
    """Device and autocast dtype of a stage."""

    groups: ClassVar[Groups] = {"device and memory": ("device", "mixed_precision")}

    mixed_precision: Literal["auto", "no", "bf16"] = Field(
        default="auto",
        description=(
            "autocast dtype; auto: bf16 if native, else fp32\n"
            "auto, no (fp32) or bf16; native: GPUs since Ampere, CPUs with AVX512-BF16 or AMX"
        ),
    )


def number_or_auto(value: Any) -> Any:
    """Return an integer of at least 1, or `auto`; raises ValueError otherwise."""
    if value == "auto":
        return value
    try:
        number = int(str(value))
    except ValueError:
        number = 0
    if number < 1:
        raise ValueError(f"got {value!r}, expected an integer of at least 1, such as 16, or auto")
    return number


OptionsT = TypeVar("OptionsT", bound=Options)


def parse_options(kind: type[OptionsT], values: Mapping[str, Any], *, what: str) -> OptionsT:
    """Return the option set with these values; raises OptionError that lists all mistakes at once."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise OptionError(f"{what}:\n" + "\n".join(explain(error, kind))) from None


def explain(error: ValidationError, kind: type[BaseModel]) -> list[str]:
    """Return one line per mistake: the option, its value, what is expected, the nearest name."""
    from difflib import get_close_matches

    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        got = item["input"]
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            owner = _set_at(kind, item["loc"][:-1])
            known = [] if owner is None else list(owner.model_fields)
            near = get_close_matches(str(item["loc"][-1]), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            lines.append(f"  {where}: no such option; {hint}")
        elif item["type"] == "literal_error":
            choices = [c.strip(" '") for c in item["ctx"]["expected"].replace(" or ", ", ").split(",")]
            near = get_close_matches(str(got), choices, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            lines.append(f"  {where}: got {got!r}, expected one of {', '.join(choices)}{hint}")
        elif item["type"] == "missing":
            lines.append(f"  {where}: missing")
        elif item["type"] == "value_error":
            lines.append(f"  {where + ': ' if where else ''}{message}")
        elif number := _number_at(kind, item["loc"]):
            lines.append(f"  {where}: got {got!r}, expected {number}")
        else:
            lines.append(f"  {where}: got {got!r}; {message[0].lower()}{message[1:]}")
    return lines


def _number_at(kind: type[BaseModel], path: tuple[int | str, ...]) -> str:
    """Return the numbers that an option takes, as text; empty if the option takes other values too."""
    owner = _set_at(kind, path[:-1])
    info = None if owner is None else owner.model_fields.get(str(path[-1]))
    types = {info.annotation, *get_args(info.annotation)} if info else set()
    number = next((n for n in (int, float) if types <= {n, n | None, type(None)}), None)
    if info is None or number is None:
        return ""
    bounds = {b: getattr(m, b) for m in info.metadata for b in ("gt", "ge", "lt", "le") if hasattr(m, b)}
    return ("an integer" if number is int else "a number") + _range_of(bounds)


def _range_of(bounds: Mapping[str, float]) -> str:
    """Return the range of a number as text: gt, ge, lt and le are its bounds."""
    if bounds.keys() == {"gt", "lt"}:
        return f" between {bounds['gt']:g} and {bounds['lt']:g}"
    if bounds.keys() == {"ge", "le"}:
        return f" from {bounds['ge']:g} to {bounds['le']:g}"
    words = {"gt": "above", "ge": "of at least", "lt": "below", "le": "at most"}
    parts = [f"{words[bound]} {bounds[bound]:g}" for bound in words if bound in bounds]
    return f" {' and '.join(parts)}" if parts else ""


def _set_at(kind: type[BaseModel], path: tuple[int | str, ...]) -> type[BaseModel] | None:
    """Return the option set at a path; None if the value there is no option set."""
    for part in path:
        annotation = kind.model_fields[str(part)].annotation
        inner = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)]
        if not inner:
            return None
        kind = inner[0]
    return kind
