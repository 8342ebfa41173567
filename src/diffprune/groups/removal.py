"""Remove units from a copy of a denoiser."""

from collections.abc import Mapping, Sequence

from diffusers.models.modeling_utils import ModelMixin

from diffprune.artifact.shorten import keep_blocks
from diffprune.artifact.slicing import shrink
from diffprune.groups.block_groups import kept_blocks
from diffprune.groups.group import Group, kept_indices


def remove_units(denoiser: ModelMixin, groups: Sequence[Group], kept: Mapping[str, Sequence[int]]) -> ModelMixin:
    """Return a copy with only the kept units (group name -> indices); works on the meta device as well."""
    narrow = shrink(denoiser, kept_indices(groups, kept, denoiser))
    blocks = kept_blocks(groups, kept)
    return keep_blocks(narrow, blocks) if blocks else narrow
