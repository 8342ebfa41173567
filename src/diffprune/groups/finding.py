"""All groups of a denoiser: by rule within its repeated blocks, by dependency graph where it is convolutional."""

from collections.abc import Iterator

from torch import nn

from diffprune.groups.graph import channels
from diffprune.groups.group import Group
from diffprune.groups.heads import heads_of
from diffprune.groups.neurons import neurons_of
from diffprune.models.families import family_of


def find_groups(denoiser: nn.Module) -> tuple[Group, ...]:
    """All groups of a denoiser, in the order of its layers.

    Attention heads and feed-forward neurons are found by rule, only inside lists of blocks: embedders have look-alikes.
    Channels are found by dependency graph on the meta device; no weights are needed.
    Raises ModelError for a class that is not served.
    """
    family = family_of(denoiser)
    groups = list(by_rule(denoiser))
    groups += channels(denoiser, family, without=groups)
    order = {name: position for position, (name, _) in enumerate(denoiser.named_modules())}
    return tuple(sorted(groups, key=lambda group: order[group.name]))


def by_rule(denoiser: nn.Module) -> Iterator[Group]:
    """Heads and neurons of all modules that lie in a list of blocks."""
    listed: set[str] = set()
    for path, module in denoiser.named_modules():
        parent = path.rpartition(".")[0]
        if parent in listed or isinstance(module, nn.ModuleList):
            listed.add(path)
        if parent not in listed:
            continue
        for rule in (heads_of, neurons_of):
            group = rule(path, module)
            if group is not None:
                yield group
