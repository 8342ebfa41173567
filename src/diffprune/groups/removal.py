"""What is left of a denoiser when its groups keep some of their units."""

from collections.abc import Mapping, Sequence

from diffusers.models.modeling_utils import ModelMixin

from diffprune.artifact.shorten import keep_blocks
from diffprune.artifact.slicing import shrink
from diffprune.groups.block_groups import kept_blocks
from diffprune.groups.group import Group, kept_indices


def remove_units(denoiser: ModelMixin, groups: Sequence[Group], kept: Mapping[str, Sequence[int]]) -> ModelMixin:
    """A copy with only the kept units (group name -> indices); `denoiser` is untouched. Works on the meta device."""
    narrow = shrink(denoiser, kept_indices(groups, kept, denoiser))
    blocks = kept_blocks(groups, kept)
    return keep_blocks(narrow, blocks) if blocks else narrow
