"""Widths that the device runs well: kept channels and neurons in multiples of a number."""

import math
from typing import TypeVar

import torch

from diffprune.compute.device import pick_device
from diffprune.groups import Group
from diffprune.options import PlanOptions

Set = TypeVar("Set", bound=PlanOptions)

ROUNDED_KINDS = ("channels", "neurons")
"""Kinds of units that are rows of a layer each; a head is a block of rows, whose width stays."""

WIDTH = 8
"""GPUs: tensor cores take 16 bytes at a time, 8 values in fp16 and bf16, 4 in tf32 (NVIDIA, Matrix Multiplication
Background User's Guide). CPUs without AVX-512: AVX2 holds 8 values in fp32."""

WIDTH_OF_AVX512 = 16
"""oneDNN lays channels out in blocks of 16 there (Understanding Memory Formats: nChw16c) and pads what is left over. In
bf16 a register holds two such blocks, and multiples of 16 alone gained nothing (docs/benchmarks/speed.md)."""


def resolve_round_to(options: Set) -> Set:
    """The options as they are recorded, with `round_to` as a number where it is `auto`; their precision is settled."""
    if options.round_to != "auto":
        return options
    width = width_of(pick_device(options.device), options.mixed_precision)
    return options.model_copy(update={"round_to": width})


def width_of(device: torch.device, mixed_precision: str) -> int:
    """The number of values of which a device works on multiples without waste.

    It is the same for all precisions of a GPU: what serves it in 16 bits does so in tf32 too.
    """
    if device.type != "cpu" or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return WIDTH
    return 2 * WIDTH_OF_AVX512 if mixed_precision == "bf16" else WIDTH_OF_AVX512


def rounded(kept: int, group: Group, width: int, least: int, at_most: int) -> int:
    """The number of units that is nearest to `kept`, of two as near the larger, among those that are allowed.

    Allowed are, from `least` units on, those whose every slice has a multiple of `width` rows and whose parts keep
    equally many, and `at_most`, the group's present size: where it has no such multiple, as in groups narrower than
    `width`, all of it stays. Heads and blocks stay at `kept`.
    """
    if group.kind not in ROUNDED_KINDS:
        return kept
    step = _step(group, width)
    allowed: list[int] = [*range(-(-least // step) * step, at_most, step), at_most]
    return min(allowed, key=lambda number: (abs(number - kept), -number))


def has_multiples(group: Group, width: int) -> bool:
    """Whether a group can be made narrower and end at a multiple of `width`."""
    return group.kind in ROUNDED_KINDS and _step(group, width) < group.num_units


def _step(group: Group, width: int) -> int:
    """The smallest number of units that is a multiple of `width` rows in every slice, and of the balanced parts."""
    rows = {part.width for part in group.slices} or {1}
    return math.lcm(group.balance, *(width // math.gcd(width, num) for num in rows))
