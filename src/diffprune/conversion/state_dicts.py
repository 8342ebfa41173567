"""Finding the weights in a checkpoint: bare, below `state_dict`, or in a research list with their EMA."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from diffprune.errors import ModelError

Tensors = dict[str, Tensor]
Kind = Literal["ema", "raw", "stored"]

_EMA_PLACE = 4
"""Index of the EMA in the research list [weights, optimizer, epoch, step, EMA]."""


@dataclass(frozen=True)
class Weights:
    """Tensors by name, and which of the sets in the file they are: `stored` where there is only one."""

    tensors: Tensors
    kind: Kind
    notes: tuple[str, ...] = ()


def weights_in(content: Any, *, wanted: Literal["ema", "raw"] | None) -> Weights:
    """The weights of a checkpoint's content, without a `module.` prefix.

    content: a state dict, {"state_dict": ...}, or [weights, optimizer, epoch, step, EMA] where the EMA is a dict
    by name or a list in the order of the parameters, bare or as {"shadow_params": list}.
    wanted: None takes the EMA where there is one. Raises ModelError when `wanted` is not there, or the layout is
    another one.
    """
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if _is_state_dict(content):
        if wanted is not None:
            raise ModelError(f"the file holds one set of weights and does not say which; leave --weights {wanted} out")
        return Weights(_bare(content), "stored")
    if not (isinstance(content, Sequence) and len(content) and _is_state_dict(content[0])):
        raise ModelError(
            f"the file holds {_described(content)}; expected a state dict (names and tensors), or the list "
            "[weights, optimizer, epoch, step, EMA]"
        )
    raw = _bare(content[0])
    ema = content[_EMA_PLACE] if len(content) > _EMA_PLACE else None
    if wanted == "raw":
        return Weights(raw, "raw")
    if not ema:
        if wanted == "ema":
            raise ModelError(f"the file holds no EMA weights (a list of {len(content)}); use --weights raw")
        return Weights(raw, "raw", ("the file holds no EMA weights; these are the raw ones",))
    return Weights(_named(ema, raw), "ema")


def _named(ema: Any, raw: Tensors) -> Tensors:
    """EMA weights by name, checked against the raw weights."""
    if isinstance(ema, Mapping) and "shadow_params" in ema:
        ema = ema["shadow_params"]
    if isinstance(ema, Sequence) and all(isinstance(value, Tensor) for value in ema):
        if len(ema) != len(raw):
            raise ModelError(f"the EMA lists {len(ema)} tensors, the weights {len(raw)}; use --weights raw")
        ema = dict(zip(raw, ema, strict=True))
    if not _is_state_dict(ema):
        raise ModelError(f"the EMA is {_described(ema)}; expected a dict by name or a list; use --weights raw")
    named = _bare(ema)
    wrong = sorted(set(named) ^ set(raw)) + [
        name for name in raw if name in named and named[name].shape != raw[name].shape
    ]
    if wrong:
        raise ModelError(f"the EMA and the weights differ in {some(wrong)}; use --weights raw")
    return named


def _bare(tensors: Mapping[str, Tensor]) -> Tensors:
    """Without the prefix that data parallel training puts before every name."""
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
        return f"a dict of {some([str(name) for name in value])}" if value else "an empty dict"
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return f"a list of {some([type(item).__name__ for item in value])}" if value else "an empty list"
    return f"a {type(value).__name__}"


def some(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
