"""What a denoiser is told of several images, as tensors with a row per image: taken apart and put together."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from diffprune.errors import ModelError

_REMEDY = "differs from batch to batch; give a batch_size that takes them all"


def rows_of(conditions: Sequence[Mapping[str, Any]], is_rows: Sequence[bool]) -> dict[str, Any]:
    """The conditions of several batches as one.

    Raises ModelError where their rows have different lengths, or what is shared by all rows differs between batches.
    """
    spec = tree_flatten(dict(conditions[0]))[1]
    leaves = [tree_flatten(dict(condition))[0] for condition in conditions]
    if len({len(each) for each in leaves}) > 1:
        raise ModelError(f"what the denoiser is told {_REMEDY}")
    joined = []
    for rows, *parts in zip(is_rows, *leaves, strict=True):
        if not rows:
            if not all(_same(parts[0], part) for part in parts[1:]):
                raise ModelError(f"what the denoiser is told of all prompts {_REMEDY}")
            joined.append(parts[0])
        elif len({part.shape[1:] for part in parts}) > 1:
            raise ModelError(f"the length of these texts {_REMEDY}")
        else:
            joined.append(torch.cat(parts))
    return cast(dict[str, Any], tree_unflatten(joined, spec))


def select_rows(
    condition: Mapping[str, Any], is_rows: Sequence[bool], choose: Callable[[Tensor], Tensor]
) -> dict[str, Any]:
    """A condition with `choose` applied to every tensor that has a row per image."""
    leaves, spec = tree_flatten(dict(condition))
    chosen = [choose(leaf) if rows else leaf for leaf, rows in zip(leaves, is_rows, strict=True)]
    return cast(dict[str, Any], tree_unflatten(chosen, spec))


def on_device(condition: Mapping[str, Any], device: torch.device | str) -> dict[str, Any]:
    """A condition with its tensors on a device."""
    return {name: tree_map(lambda v: v.to(device) if torch.is_tensor(v) else v, v) for name, v in condition.items()}


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)
