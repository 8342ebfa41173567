"""A list of whole blocks, and the entries of a config that say how long it is."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]


@dataclass(frozen=True)
class BlockList:
    """Blocks of one denoiser that may go one by one.

    name: how plans call it.
    units: of each block the paths of the modules that go together: its own first, then what belongs to it.
    shorter: (config, indices of the blocks that stay) -> the entries of the config that change.
    fixed: blocks that have to stay, since the forward uses them in a way of its own.
    may_empty: whether all of them may go.
    """

    name: str
    units: tuple[tuple[str, ...], ...]
    shorter: Callable[[Config, Sequence[int]], Config]
    fixed: frozenset[int] = frozenset()
    may_empty: bool = False


Finder = Callable[[Any], Iterator[BlockList]]
"""Denoiser -> the lists of blocks that its class can shorten."""


def listed(
    path: str,
    setting: str,
    *,
    beside: tuple[str, ...] = (),
    first_stays: bool = False,
    last_stays: bool = False,
    positions: str | None = None,
    positions_stay: bool = False,
    leading: str | None = None,
) -> Finder:
    """A list of equal blocks, `path`, whose number is the entry `setting` of the config.

    beside: module lists that lose the same entries. first_stays, last_stays: the forward uses that block in a way of
    its own. positions: entry of the config that lists block indices, which move up when blocks before them go;
    positions_stay: those blocks have to stay. leading: entry with the number of first blocks that are of another make.
    """

    def shorter(config: Config, kept: Sequence[int]) -> Config:
        changed: dict[str, Any] = {setting: len(kept)}
        if positions is not None:
            new = {old: position for position, old in enumerate(kept)}
            changed[positions] = [new[i] for i in config.get(positions) or () if i in new]
        if leading is not None:
            changed[leading] = sum(i < config[leading] for i in kept)
        return changed

    def found(denoiser: Any) -> Iterator[BlockList]:
        number = len(denoiser.get_submodule(path))
        units = tuple(tuple(f"{one}.{i}" for one in (path, *beside)) for i in range(number))
        fixed = [0] * first_stays + [number - 1] * last_stays
        if positions is not None and positions_stay:
            fixed += denoiser.config[positions]
        yield BlockList(path, units, shorter, frozenset(fixed))

    return found
