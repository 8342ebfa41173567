"""All groups of a denoiser: by rule within its repeated blocks, by dependency graph where it is convolutional."""

from collections.abc import Collection, Iterator

from torch import nn

from diffprune.architectures.families import Family, family_of
from diffprune.architectures.layouts import ATTENTIONS, FEED_FORWARDS
from diffprune.artifact.slicing import is_weighted
from diffprune.errors import ModelError
from diffprune.groups.block_groups import find_blocks
from diffprune.groups.channel_groups import channels
from diffprune.groups.fused_projections import of_parallel_attention, of_shared_output
from diffprune.groups.group import Group
from diffprune.groups.head_groups import heads_of
from diffprune.groups.neuron_groups import neurons_of
from diffprune.options import Kind


def find_groups(denoiser: nn.Module, *, kinds: Collection[Kind] | None = None) -> tuple[Group, ...]:
    """Groups of the given kinds of units, in the order of the layers; None stands for all kinds but whole blocks.

    Attention heads and feed-forward neurons are found by rule, only inside lists of blocks: embedders have look-alikes.
    Channels are found by dependency graph on the meta device; no weights are needed.
    Raises ModelError, which names what was not understood, for a denoiser without any group.
    """
    blocks = find_blocks(denoiser) if kinds is not None and "blocks" in kinds else ()
    if kinds is not None and {*kinds} <= {"blocks"}:
        return blocks
    family = family_of(denoiser)
    groups = list(by_rule(denoiser, family))
    if family.convolutional:
        groups += channels(denoiser, family, without=groups)
    if not groups:
        raise ModelError(_not_understood(denoiser))
    order = {name: position for position, (name, _) in enumerate(denoiser.named_modules())}
    chosen = (group for group in groups if kinds is None or group.kind in kinds)
    return (*sorted(chosen, key=lambda group: order[group.name]), *blocks)


def by_rule(denoiser: nn.Module, family: Family) -> Iterator[Group]:
    """Heads and neurons of all modules that lie in a list of blocks."""
    attentions, feed_forwards = (*family.attentions, *ATTENTIONS), (*family.feed_forwards, *FEED_FORWARDS)
    for path, module in listed_modules(denoiser):
        found = [
            heads_of(path, module, attentions),
            neurons_of(path, module, feed_forwards),
            *of_shared_output(path, module, attentions),
            *of_parallel_attention(path, module),
        ]
        for group in found:
            if group is not None and not (group.kind == "heads" and _keeps_heads(denoiser, group, family)):
                yield group


def _keeps_heads(denoiser: nn.Module, group: Group, family: Family) -> bool:
    path = group.name.rpartition(".")[0]
    return family.whole_attentions(path, denoiser.get_submodule(path))


def listed_modules(denoiser: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules that lie in a list of modules, by path."""
    inside: set[str] = set()
    for path, module in denoiser.named_modules():
        parent = path.rpartition(".")[0]
        if parent in inside:
            yield path, module
        if parent in inside or isinstance(module, nn.ModuleList):
            inside.add(path)


def block_lists(denoiser: nn.Module) -> dict[str, nn.ModuleList]:
    """The outermost lists of modules that are made of several layers each, by path."""
    found: dict[str, nn.ModuleList] = {}
    for path, module in denoiser.named_modules():
        if isinstance(module, nn.ModuleList) and not any(path.startswith(f"{outer}.") for outer in found):
            found[path] = module
    return {
        path: blocks
        for path, blocks in found.items()
        if any(sum(is_weighted(layer) for layer in block.modules()) > 1 for block in blocks)
    }


def _not_understood(denoiser: nn.Module) -> str:
    lists = [
        f"  {path}: {len(blocks)} blocks, with {', '.join(sorted({type(m).__name__ for m in blocks[0].children()}))}"
        for path, blocks in block_lists(denoiser).items()
    ]
    shown = "\n".join(lists) or "  none: its layers lie in no nn.ModuleList"
    return (
        f"no prunable units were found in denoiser class {type(denoiser).__name__}. Its lists of blocks, and what the "
        f"first block of each is made of:\n{shown}\nName its layers with diffprune.register_family(...): "
        "docs/how-to/add-a-family.md"
    )
