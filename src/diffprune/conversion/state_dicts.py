"""Find the weights in a checkpoint: a state dict, a dict with `state_dict`, or a research list with EMA weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from diffprune.errors import ModelError

Tensors = dict[str, Tensor]
Kind = Literal["ema", "raw", "stored"]

_EMA_INDEX = 4
"""Index of the EMA in the research list [weights, optimizer, epoch, step, EMA]."""


@dataclass(frozen=True)
class Weights:
    """Tensors by name, and their kind: `stored` if the file has one set of weights only."""

    tensors: Tensors
    kind: Kind
    notes: tuple[str, ...] = ()


def weights_in(content: Any, *, wanted: Literal["ema", "raw"] | None) -> Weights:
    """Return the weights of a checkpoint, without a `module.` prefix.

    content: a state dict, {"state_dict": ...}, or [weights, optimizer, epoch, step, EMA]. The EMA is a dict by name, a
    list in the order of the parameters, or {"shadow_params": list}.
    wanted: which weights; None prefers the EMA. Raises ModelError if they are missing or the layout is unknown.
    """
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if _is_state_dict(content):
        if wanted is not None:
            raise ModelError(f"the file holds one set of weights without a name; remove --weights {wanted}")
        return Weights(_bare(content), "stored")
    if not (isinstance(content, Sequence) and len(content) and _is_state_dict(content[0])):
        raise ModelError(
            f"the file holds {_described(content)}; expected a state dict (names and tensors), or the list "
            "[weights, optimizer, epoch, step, EMA]"
        )
    raw = _bare(content[0])
    ema = content[_EMA_INDEX] if len(content) > _EMA_INDEX else None
    if wanted == "raw":
        return Weights(raw, "raw")
    if not ema:
        if wanted == "ema":
            raise ModelError(f"the file holds no EMA weights (a list of {len(content)}); use --weights raw")
        return Weights(raw, "raw", ("the file holds no EMA weights; converted the raw ones",))
    return Weights(_named(ema, raw), "ema")


def _named(ema: Any, raw: Tensors) -> Tensors:
    """Return the EMA weights by name, with the names and shapes of the raw weights."""
    if isinstance(ema, Mapping) and "shadow_params" in ema:
        ema = ema["shadow_params"]
    if isinstance(ema, Sequence) and all(isinstance(value, Tensor) for value in ema):
        if len(ema) != len(raw):
            raise ModelError(f"the EMA has {len(ema)} tensors, the weights {len(raw)}; use --weights raw")
        ema = dict(zip(raw, ema, strict=True))
    if not _is_state_dict(ema):
        raise ModelError(f"the EMA is {_described(ema)}; expected a dict by name or a list; use --weights raw")
    named = _bare(ema)
    wrong = sorted(set(named) ^ set(raw)) + [
        name for name in raw if name in named and named[name].shape != raw[name].shape
    ]
    if wrong:
        raise ModelError(f"the EMA and the weights differ in {abbreviated(wrong)}; use --weights raw")
    return named


def _bare(tensors: Mapping[str, Tensor]) -> Tensors:
    """Remove the prefix that data parallel training adds to every name."""
    prefix = "module." if all(name.startswith("module.") for name in tensors) else ""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )


def _described(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a dict of {abbreviated([str(name) for name in value])}" if value else "an empty dict"
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return f"a list of {abbreviated([type(item).__name__ for item in value])}" if value else "an empty list"
    return f"a {type(value).__name__}"


def abbreviated(names: Sequence[str], most: int = 5) -> str:
    """Format the first names of a list and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
