"""Match the blocks of student and teacher for feature distillation, and record their outputs."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from diffprune.artifact.pruned_classes import PrunedMixin
from diffprune.artifact.slicing import is_weighted, width
from diffprune.errors import ModelError
from diffprune.groups import find_groups, kept_indices
from diffprune.groups.group_finder import nested_block_lists


@dataclass(frozen=True)
class MatchedBlocks:
    """Blocks that student and teacher share: path -> channels of the teacher's output that the student kept.

    None stands for all channels.
    """

    channels: Mapping[str, Tensor | None]

    @contextmanager
    def recorded(self, model: nn.Module) -> Iterator[list[Tensor]]:
        """Record the blocks' outputs in a forward pass; the list is filled on exit, in the order of `channels`."""
        outputs: dict[str, Tensor] = {}
        features: list[Tensor] = []

        def record(path: str) -> Any:
            def hook(block: nn.Module, inputs: Any, output: Any) -> None:
                outputs[path] = output if isinstance(output, Tensor) else output[0]

            return hook

        handles = [model.get_submodule(path).register_forward_hook(record(path)) for path in self.channels]
        try:
            yield features
        finally:
            features.extend(outputs[path] for path in self.channels if path in outputs)
            for handle in handles:
                handle.remove()

    def of_teacher(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Select the channels of the teacher's features that the student kept."""
        return [
            feature if rows is None else feature.index_select(1, rows.to(feature.device))
            for feature, rows in zip(features, self.channels.values(), strict=True)
        ]


def matched_blocks(student: nn.Module, teacher: nn.Module) -> MatchedBlocks:
    """Match the blocks of the lists that have the same length in student and teacher.

    Kept channels are read from the student's manifest. It must record one pruning, of this teacher.
    Raises ModelError where no block can be matched.
    """
    teacher_lists = nested_block_lists(teacher)
    paths = [
        f"{path}.{index}"
        for path, blocks in nested_block_lists(student).items()
        if path in teacher_lists and len(teacher_lists[path]) == len(blocks)
        for index in range(len(blocks))
    ]
    student_layers = {name for name, layer in student.named_modules() if is_weighted(layer)}
    kept = _kept_rows(student, teacher)
    channels: dict[str, Tensor | None] = {}
    for path in paths:
        own = [f"{path}.{name}" for name, layer in teacher.get_submodule(path).named_modules() if is_weighted(layer)]
        last = own[-1] if own else None  # its rows are the channels of the block's output
        if last is None or last not in student_layers:
            continue
        ours, full = (width(model.get_submodule(last), "out") for model in (student, teacher))
        if ours == full:
            channels[path] = None
        elif last in kept and len(kept[last]) == ours:
            channels[path] = kept[last]
    if not channels:
        raise ModelError(
            "feature_weight: no block of the student matches a block of the teacher: their block lists differ in "
            "length, or the student's manifest does not record the kept channels of this teacher; leave the option out"
        )
    return MatchedBlocks(channels)


def _kept_rows(student: nn.Module, teacher: nn.Module) -> dict[str, Tensor]:
    """Return layer -> rows of the teacher that the student kept; empty where its manifest records none."""
    history = student.pruning_provenance if isinstance(student, PrunedMixin) else []
    kept = history[-1].get("kept_channels") if len(history) == 1 else None
    if not kept:
        return {}
    groups = [group for group in find_groups(teacher, kinds=["channels"]) if group.name in kept]
    rows = kept_indices(groups, kept, teacher).rows
    return {path: indices for (path, dim), indices in rows.items() if dim == "out"}
