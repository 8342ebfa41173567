"""The groups of a pruned denoiser, derived from the groups it had before."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from diffprune.artifact.shorten import Moves, moves, path_after
from diffprune.artifact.slicing import LayerDim, is_weighted
from diffprune.groups.block_groups import kept_blocks
from diffprune.groups.group import Count, Group, Slice, kept_indices


def reduced_groups(denoiser: nn.Module, groups: Sequence[Group], kept: Mapping[str, Sequence[int]]) -> dict[str, Group]:
    """Return the groups of the denoiser after pruning, by their names before; no dependency graph is traced.

    denoiser: before pruning. kept: group name -> units to keep. Groups without any kept unit, or all of whose layers
    are in removed blocks, are left out. A group whose first layer is removed is named by the first layer that remains.
    """
    moved = moves(denoiser, kept_blocks(groups, kept))
    rows = kept_indices(groups, kept, denoiser).rows
    reduced: dict[str, Group] = {}
    for group in groups:
        units = kept.get(group.name, range(group.num_units))
        slices = [part for place in group.slices if (part := _reduced_slice(place, rows, moved)) is not None]
        name = path_after(group.name, moved) or _first_producer(denoiser, group, moved)
        if not units or name is None or (group.slices and not slices):
            continue
        reduced[group.name] = replace(
            group,
            name=name,
            num_units=len(units),
            slices=tuple(slices),
            counts=tuple(
                Count(path, count.attribute, count.per_unit)
                for count in group.counts
                if (path := path_after(count.module, moved)) is not None
            ),
            rotary=None if group.rotary is None else path_after(group.rotary, moved),
        )
    return reduced


def _first_producer(denoiser: nn.Module, group: Group, moved: Moves) -> str | None:
    """Return the path after pruning of the first remaining layer that produces the units."""
    producers = (part.module for part in group.slices if part.dim == "out")
    paths = (path_after(path, moved) for path in producers if is_weighted(denoiser.get_submodule(path)))
    return next((path for path in paths if path is not None), None)


def _reduced_slice(part: Slice, rows: Mapping[LayerDim, Tensor], moved: Moves) -> Slice | None:
    """Return where the remaining units of a slice start; None if its layer is removed."""
    path = path_after(part.module, moved)
    if path is None:
        return None
    remaining = rows.get((part.module, part.dim))
    start = part.start if remaining is None else int((remaining < part.start).sum())
    return Slice(path, part.dim, start, part.width)
