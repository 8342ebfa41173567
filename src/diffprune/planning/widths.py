"""Round numbers of kept channels and neurons to multiples that the device computes efficiently."""

import math
from typing import TypeVar

import torch

from diffprune.compute.device import pick_device
from diffprune.groups import Group
from diffprune.options import PlanOptions

OptionsT = TypeVar("OptionsT", bound=PlanOptions)

ROUNDED_KINDS = ("channels", "neurons")
"""Kinds of units with one row each. A head has several rows, and its width does not change."""

WIDTH = 8
"""GPUs: tensor cores take 16 bytes at a time, 8 values in fp16 and bf16, 4 in tf32 (NVIDIA, Matrix Multiplication
Background User's Guide). CPUs without AVX-512: AVX2 holds 8 values in fp32."""

WIDTH_OF_AVX512 = 16
"""CPUs with AVX-512: oneDNN stores channels in blocks of 16 and pads the last block (Understanding Memory Formats:
nChw16c). In bf16 a register holds two blocks; multiples of 16 gained nothing (docs/benchmarks/speed.md)."""


def resolve_round_to(options: OptionsT) -> OptionsT:
    """Return the options with `round_to` as a number if it is `auto`. Resolve their precision first."""
    if options.round_to != "auto":
        return options
    width = width_of(pick_device(options.device), options.mixed_precision)
    return options.model_copy(update={"round_to": width})


def width_of(device: torch.device, mixed_precision: str) -> int:
    """Return the number of values whose multiples a device computes without padding.

    It is the same for all precisions of a GPU: multiples for 16 bits are multiples for tf32 too.
    """
    if device.type != "cpu" or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return WIDTH
    return 2 * WIDTH_OF_AVX512 if mixed_precision == "bf16" else WIDTH_OF_AVX512


def rounded(kept: int, group: Group, width: int, least: int, at_most: int) -> int:
    """Return the allowed number of units nearest to `kept`; in a tie, the larger one.

    A number of at least `least` is allowed if every slice has a multiple of `width` rows, equally many in each part.
    `at_most`, the present size of the group, is always allowed: a group narrower than `width` keeps its size. Heads and
    blocks are not rounded.
    """
    if group.kind not in ROUNDED_KINDS:
        return kept
    step = _step(group, width)
    allowed: list[int] = [*range(-(-least // step) * step, at_most, step), at_most]
    return min(allowed, key=lambda number: (abs(number - kept), -number))


def has_multiples(group: Group, width: int) -> bool:
    """Return whether a group has a multiple of `width` below its size."""
    return group.kind in ROUNDED_KINDS and _step(group, width) < group.num_units


def _step(group: Group, width: int) -> int:
    """Return the smallest number of units with a multiple of `width` rows per slice, equal in all parts."""
    rows = {part.width for part in group.slices} or {1}
    return math.lcm(group.balance, *(width // math.gcd(width, num) for num in rows))
