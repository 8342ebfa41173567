"""Split and concatenate conditioning kwargs, some of which have a batch dimension."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from diffprune.errors import ModelError

Rows = slice | Sequence[int]

JOINED = "joined to the noisy input"
"""Key of the one entry that is not a keyword argument: {"axis": axis of x_t, "part": (N, ...)}.

`part` is concatenated to x_t along `axis`, such as the latents of an image to edit.
"""

_REMEDY = "differs between batches; use a batch_size that covers all prompts, and input images of one size"


def leaves_of(conditioning: Mapping[str, Any]) -> list[Any]:
    """Return the leaves of a conditioning: tensors, plain values, and lists of plain values as one leaf each."""
    leaves: list[Any] = tree_flatten(dict(conditioning), is_leaf=_is_plain_list)[0]
    return leaves


def has_batch_dimension(leaf: Any, leaf_with_one_more: Any, num_prompts: int) -> bool:
    """Return whether a leaf has one row per prompt, by its lengths for `num_prompts` prompts and for one more."""
    if not isinstance(leaf, list) and not (isinstance(leaf, Tensor) and leaf.ndim > 0):
        return False
    lengths = (num_prompts, num_prompts + 1)
    return type(leaf) is type(leaf_with_one_more) and (len(leaf), len(leaf_with_one_more)) == lengths


def are_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two conditionings have the same keys and tensor shapes."""
    shapes = ([leaf.shape if isinstance(leaf, Tensor) else None for leaf in leaves_of(c)] for c in (one, other))
    return one.keys() == other.keys() and next(shapes) == next(shapes)


def are_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two conditionings hold the same values."""
    leaves = (leaves_of(one), leaves_of(other))
    return are_alike(one, other) and all(_same(a, b) for a, b in zip(*leaves, strict=True))


def rows_of(conditionings: Sequence[Mapping[str, Any]], is_rows: Sequence[bool]) -> dict[str, Any]:
    """Concatenate the conditionings of several batches. is_rows: per leaf, whether it has a batch dimension.

    Raises ModelError if rows differ in shape, or if a leaf without a batch dimension differs between batches.
    """
    leaves = [leaves_of(conditioning) for conditioning in conditionings]
    if len({len(each) for each in leaves}) > 1:
        raise ModelError(f"the conditioning {_REMEDY}")
    joined = []
    for rows, *parts in zip(is_rows, *leaves, strict=True):
        if not rows:
            if not all(_same(parts[0], part) for part in parts[1:]):
                raise ModelError(f"the conditioning shared by all prompts {_REMEDY}")
            joined.append(parts[0])
        elif isinstance(parts[0], list):
            joined.append([row for part in parts for row in part])
        elif len({part.shape[1:] for part in parts}) > 1:
            raise ModelError(f"the length of the text conditioning {_REMEDY}")
        else:
            joined.append(torch.cat(parts))
    return _with_leaves(conditionings[0], joined)


def select_rows(conditioning: Mapping[str, Any], is_rows: Sequence[bool], indices: Rows) -> dict[str, Any]:
    """Return the conditioning of the rows `indices`, in that order, detached."""
    leaves = zip(leaves_of(conditioning), is_rows, strict=True)
    return _with_leaves(conditioning, [_rows(leaf, indices) if rows else leaf for leaf, rows in leaves])


def on_device(conditioning: Mapping[str, Any], device: torch.device | str) -> dict[str, Any]:
    """Return a conditioning with its tensors on a device."""
    return {name: tree_map(lambda v: v.to(device) if torch.is_tensor(v) else v, v) for name, v in conditioning.items()}


def _rows(leaf: Any, indices: Rows) -> Any:
    if isinstance(leaf, list):
        return leaf[indices] if isinstance(indices, slice) else [leaf[i] for i in indices]
    return leaf[indices].detach()


def _with_leaves(conditioning: Mapping[str, Any], leaves: Sequence[Any]) -> dict[str, Any]:
    spec = tree_flatten(dict(conditioning), is_leaf=_is_plain_list)[1]
    return cast(dict[str, Any], tree_unflatten(leaves, spec))


def _is_plain_list(value: Any) -> bool:
    return isinstance(value, list) and not any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)
