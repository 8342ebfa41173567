"""Which units of a denoiser can only be removed together."""

from diffprune.groups.group import Group, Slice, kept_indices
from diffprune.groups.unet import find_groups

__all__ = ["Group", "Slice", "find_groups", "kept_indices"]
