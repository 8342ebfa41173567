"""Find all groups of a denoiser: by layer names inside its blocks, by dependency graph where it is convolutional."""

from collections.abc import Collection, Iterator

from torch import nn

from diffprune.architectures.families import Family, family_of
from diffprune.architectures.layouts import ATTENTIONS, FEED_FORWARDS
from diffprune.artifact.slicing import is_weighted
from diffprune.compute.torch_context import default_torch_context
from diffprune.errors import ModelError
from diffprune.groups.block_groups import find_blocks
from diffprune.groups.channel_groups import channel_groups
from diffprune.groups.fused_projections import parallel_attention_groups, shared_output_groups
from diffprune.groups.group import Group
from diffprune.groups.head_groups import head_group
from diffprune.groups.neuron_groups import neuron_group
from diffprune.options import Kind


@default_torch_context()
def find_groups(denoiser: nn.Module, *, kinds: Collection[Kind] | None = None) -> tuple[Group, ...]:
    """Find the groups of these kinds of units, in the order of the layers; None: all kinds except blocks.

    Heads and neurons are found by the names of their layers, only inside block lists, since embedders use the same
    names. Channels are found by tracing the dependency graph on the meta device; no weights are needed.
    Raises ModelError, which lists the unknown blocks, for a denoiser without any group.
    """
    blocks = find_blocks(denoiser) if kinds is not None and "blocks" in kinds else ()
    if kinds is not None and {*kinds} <= {"blocks"}:
        return blocks
    family = family_of(denoiser)
    groups = list(head_and_neuron_groups(denoiser, family))
    if family.convolutional:
        groups += channel_groups(denoiser, family, without=groups)
    if not groups:
        raise ModelError(_no_groups_message(denoiser))
    order = {name: position for position, (name, _) in enumerate(denoiser.named_modules())}
    chosen = (group for group in groups if kinds is None or group.kind in kinds)
    return (*sorted(chosen, key=lambda group: order[group.name]), *blocks)


def head_and_neuron_groups(denoiser: nn.Module, family: Family) -> Iterator[Group]:
    """Yield the groups of heads and neurons of all modules inside block lists."""
    attentions, feed_forwards = (*family.attentions, *ATTENTIONS), (*family.feed_forwards, *FEED_FORWARDS)
    for path, module in modules_in_lists(denoiser):
        candidates = [
            head_group(path, module, attentions),
            neuron_group(path, module, feed_forwards),
            *shared_output_groups(path, module, attentions),
            *parallel_attention_groups(path, module),
        ]
        for group in candidates:
            if group is not None and not (group.kind == "heads" and _keeps_all_heads(denoiser, group, family)):
                yield group


def _keeps_all_heads(denoiser: nn.Module, group: Group, family: Family) -> bool:
    path = group.name.rpartition(".")[0]
    return family.keeps_all_heads(path, denoiser.get_submodule(path))


def modules_in_lists(denoiser: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield path and module of all modules inside an nn.ModuleList."""
    inside: set[str] = set()
    for path, module in denoiser.named_modules():
        parent = path.rpartition(".")[0]
        if parent in inside:
            yield path, module
        if parent in inside or isinstance(module, nn.ModuleList):
            inside.add(path)


def nested_block_lists(denoiser: nn.Module) -> dict[str, nn.ModuleList]:
    """Return path -> outermost nn.ModuleList, for lists with a module of several layers."""
    outermost: dict[str, nn.ModuleList] = {}
    for path, module in denoiser.named_modules():
        if isinstance(module, nn.ModuleList) and not any(path.startswith(f"{outer}.") for outer in outermost):
            outermost[path] = module
    return {
        path: blocks
        for path, blocks in outermost.items()
        if any(sum(is_weighted(layer) for layer in block.modules()) > 1 for block in blocks)
    }


def _no_groups_message(denoiser: nn.Module) -> str:
    lists = [
        f"  {path}: {len(blocks)} blocks, with {', '.join(sorted({type(m).__name__ for m in blocks[0].children()}))}"
        for path, blocks in nested_block_lists(denoiser).items()
    ]
    shown = "\n".join(lists) or "  none: no layer is inside an nn.ModuleList"
    return (
        f"no prunable units were found in denoiser class {type(denoiser).__name__}. Its block lists, and the classes "
        f"inside the first block of each:\n{shown}\nRegister the names of its layers with "
        "diffprune.register_family(...): docs/how-to/add-a-family.md"
    )
