"""Features of student and teacher: what their blocks give, matched by name, channels matched by what was kept."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from diffprune.artifact.pruned_classes import PrunedMixin
from diffprune.artifact.slicing import is_weighted, width
from diffprune.errors import ModelError
from diffprune.groups import find_groups, kept_indices
from diffprune.groups.group_finder import block_lists


@dataclass(frozen=True)
class Matched:
    """Blocks of a student and of its teacher: path -> channels of the teacher's output that the student has.

    None stands for all of them.
    """

    channels: Mapping[str, Tensor | None]

    @contextmanager
    def watched(self, model: nn.Module) -> Iterator[list[Tensor]]:
        """Collect what the blocks of a model give in a forward pass, in the order of `channels`."""
        found: dict[str, Tensor] = {}
        given: list[Tensor] = []

        def watch(path: str) -> Any:
            def hook(block: nn.Module, inputs: Any, output: Any) -> None:
                found[path] = output if isinstance(output, Tensor) else output[0]

            return hook

        handles = [model.get_submodule(path).register_forward_hook(watch(path)) for path in self.channels]
        try:
            yield given
        finally:
            given.extend(found[path] for path in self.channels if path in found)
            for handle in handles:
                handle.remove()

    def of_teacher(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The teacher's features with the channels that the student has."""
        return [
            feature if rows is None else feature.index_select(1, rows.to(feature.device))
            for feature, rows in zip(features, self.channels.values(), strict=True)
        ]


def matched_blocks(student: nn.Module, teacher: nn.Module) -> Matched:
    """The blocks that both have, list by list where the lists are of one length.

    Channels are those that the last pruning kept, as the student's manifest tells; it has to be one pruning of this
    very teacher. Raises ModelError where no block can be matched.
    """
    theirs = block_lists(teacher)
    paths = [
        f"{path}.{index}"
        for path, blocks in block_lists(student).items()
        if path in theirs and len(theirs[path]) == len(blocks)
        for index in range(len(blocks))
    ]
    there = {name for name, layer in student.named_modules() if is_weighted(layer)}
    kept = _kept_rows(student, teacher)
    channels: dict[str, Tensor | None] = {}
    for path in paths:
        own = [f"{path}.{name}" for name, layer in teacher.get_submodule(path).named_modules() if is_weighted(layer)]
        last = own[-1] if own else None  # its rows are what the block gives
        if last is None or last not in there:
            continue
        ours, full = (width(model.get_submodule(last), "out") for model in (student, teacher))
        if ours == full:
            channels[path] = None
        elif last in kept and len(kept[last]) == ours:
            channels[path] = kept[last]
    if not channels:
        raise ModelError(
            "feature_weight: no block of the student can be matched with one of the teacher: their lists of blocks "
            "have other lengths, or the student does not tell which channels of this teacher it has kept; leave it out"
        )
    return Matched(channels)


def _kept_rows(student: nn.Module, teacher: nn.Module) -> dict[str, Tensor]:
    """Layer -> rows of the teacher that the student has kept; empty where it does not tell."""
    history = student.pruning_provenance if isinstance(student, PrunedMixin) else []
    kept = history[-1].get("kept_channels") if len(history) == 1 else None
    if not kept:
        return {}
    groups = [group for group in find_groups(teacher, kinds=["channels"]) if group.name in kept]
    rows = kept_indices(groups, kept, teacher).rows
    return {path: indices for (path, dim), indices in rows.items() if dim == "out"}
