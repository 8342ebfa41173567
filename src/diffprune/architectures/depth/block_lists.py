"""Define `BlockList`, the removable blocks of a denoiser, and its finder for a plain `nn.ModuleList`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]


@dataclass(frozen=True)
class BlockList:
    """Blocks of a denoiser that can be removed one by one.

    name: name of the list in plans.
    units: per block, the paths of the modules that are removed together, the block itself first.
    shorter: (config, indices of the kept blocks) -> the config entries that change.
    fixed: indices of blocks that cannot be removed, because the forward pass treats them differently.
    may_empty: whether all blocks can be removed.
    """

    name: str
    units: tuple[tuple[str, ...], ...]
    shorter: Callable[[Config, Sequence[int]], Config]
    fixed: frozenset[int] = frozenset()
    may_empty: bool = False


Finder = Callable[[Any], Iterator[BlockList]]
"""Denoiser -> its block lists."""


def module_list(
    path: str,
    setting: str,
    *,
    paired: tuple[str, ...] = (),
    first_fixed: bool = False,
    last_fixed: bool = False,
    positions: str | None = None,
    positions_fixed: bool = False,
    leading: str | None = None,
) -> Finder:
    """Return the finder of the `nn.ModuleList` at `path`, whose length is the config entry `setting`.

    paired: other module lists that lose the same entries. first_fixed, last_fixed: that block cannot be removed.
    positions: config entry that lists block indices, which are renumbered. positions_fixed: those blocks cannot be
    removed. leading: config entry with the number of first blocks that are of another class.
    """

    def shorter(config: Config, kept: Sequence[int]) -> Config:
        changed: dict[str, Any] = {setting: len(kept)}
        if positions is not None:
            new = {old: position for position, old in enumerate(kept)}
            changed[positions] = [new[i] for i in config.get(positions) or () if i in new]
        if leading is not None:
            changed[leading] = sum(i < config[leading] for i in kept)
        return changed

    def find(denoiser: Any) -> Iterator[BlockList]:
        number = len(denoiser.get_submodule(path))
        units = tuple(tuple(f"{each}.{i}" for each in (path, *paired)) for i in range(number))
        fixed = [0] * first_fixed + [number - 1] * last_fixed
        if positions is not None and positions_fixed:
            fixed += denoiser.config[positions]
        yield BlockList(path, units, shorter, frozenset(fixed))

    return find
