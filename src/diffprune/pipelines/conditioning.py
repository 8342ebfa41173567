"""What a denoiser is told of several images, with a row per image in some of it: taken apart and put together."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from diffprune.errors import ModelError

Rows = slice | Sequence[int]

JOINED = "joined to the noisy input"
"""Name in a condition of what is no keyword argument: {"axis": of x_t, "part": (N, ...) beyond x_t}, as of images to
draw from that a pipeline joins to its latents."""

_REMEDY = "differs from batch to batch; give a batch_size that takes them all, and, to draw from, images of one size"


def leaves_of(condition: Mapping[str, Any]) -> list[Any]:
    """What a condition is made of: its tensors and plain values, and lists of plain values as they are."""
    leaves: list[Any] = tree_flatten(dict(condition), is_leaf=_is_plain_list)[0]
    return leaves


def have_rows(few: Any, more: Any, num: int) -> bool:
    """Whether a leaf has a row per prompt, as it was told with `num` prompts and with one more."""
    if not isinstance(few, list) and not (isinstance(few, Tensor) and few.ndim > 0):
        return False
    return type(few) is type(more) and (len(few), len(more)) == (num, num + 1)


def are_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether conditions of as many images are made of tensors of the same shapes, and so fit together."""
    shapes = ([leaf.shape if isinstance(leaf, Tensor) else None for leaf in leaves_of(c)] for c in (one, other))
    return one.keys() == other.keys() and next(shapes) == next(shapes)


def are_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether conditions hold the same values."""
    leaves = (leaves_of(one), leaves_of(other))
    return are_alike(one, other) and all(_same(a, b) for a, b in zip(*leaves, strict=True))


def rows_of(conditions: Sequence[Mapping[str, Any]], is_rows: Sequence[bool]) -> dict[str, Any]:
    """The conditions of several batches as one.

    Raises ModelError where their rows have different lengths, or what is shared by all rows differs between batches.
    """
    leaves = [leaves_of(condition) for condition in conditions]
    if len({len(each) for each in leaves}) > 1:
        raise ModelError(f"what the denoiser is told {_REMEDY}")
    joined = []
    for rows, *parts in zip(is_rows, *leaves, strict=True):
        if not rows:
            if not all(_same(parts[0], part) for part in parts[1:]):
                raise ModelError(f"what the denoiser is told of all prompts {_REMEDY}")
            joined.append(parts[0])
        elif isinstance(parts[0], list):
            joined.append([row for part in parts for row in part])
        elif len({part.shape[1:] for part in parts}) > 1:
            raise ModelError(f"the length of these texts {_REMEDY}")
        else:
            joined.append(torch.cat(parts))
    return _like(conditions[0], joined)


def select_rows(condition: Mapping[str, Any], is_rows: Sequence[bool], wanted: Rows) -> dict[str, Any]:
    """A condition of some of its rows, in this order; detached."""
    chosen = [_rows(leaf, wanted) if rows else leaf for leaf, rows in zip(leaves_of(condition), is_rows, strict=True)]
    return _like(condition, chosen)


def on_device(condition: Mapping[str, Any], device: torch.device | str) -> dict[str, Any]:
    """A condition with its tensors on a device."""
    return {name: tree_map(lambda v: v.to(device) if torch.is_tensor(v) else v, v) for name, v in condition.items()}


def _rows(leaf: Any, wanted: Rows) -> Any:
    if isinstance(leaf, list):
        return leaf[wanted] if isinstance(wanted, slice) else [leaf[i] for i in wanted]
    return leaf[wanted].detach()


def _like(condition: Mapping[str, Any], leaves: Sequence[Any]) -> dict[str, Any]:
    spec = tree_flatten(dict(condition), is_leaf=_is_plain_list)[1]
    return cast(dict[str, Any], tree_unflatten(leaves, spec))


def _is_plain_list(value: Any) -> bool:
    return isinstance(value, list) and not any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)
