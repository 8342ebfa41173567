"""Running sums of a long pass: shared by processes, on disk meanwhile, found again by the same command."""

import math
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from diffprune.errors import DiffpruneError, ModelError
from diffprune.runs.distributed import all_reduce_sum, on_all_ranks, on_main_process, process_state
from diffprune.runs.progress import progress
from diffprune.runs.tensor_cache import CacheEntry, read_cache, write_cache

SAVE_EVERY_S = 60.0
SAVING_SHARE = 0.05
"""Of the time of a pass that saving may take: large sums are saved less often."""

T = TypeVar("T", bound=Hashable)


class Accumulator:
    """What a pass over items has added up, each process for its own items.

    tensors: name -> sum; made by `zeros`, added to in place. losses: item -> its loss, to be set while the item is
    worked on; afterwards that of all processes together. position: items that are done. error: to be set where an item
    cannot be worked on; then all processes raise it together, and the item counts as not done.
    folder: where the sums are kept until the pass has ended; None: nowhere. made_from: what they depend on, as JSON
    types.
    """

    def __init__(
        self, device: str = "auto", folder: Path | None = None, made_from: Mapping[str, Any] | None = None
    ) -> None:
        self.device = device
        self.folder = folder
        self.made_from = made_from or {}
        self.tensors: dict[str, Tensor] = {}
        self.losses: dict[Any, float] = {}
        self.position = 0
        self.error: DiffpruneError | None = None
        self._due = time.monotonic() + SAVE_EVERY_S

    def zeros(
        self, name: str, *shape: int, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
    ) -> Tensor:
        """The sum of this name: zeros, or what an interrupted run has left of it."""
        found = self.tensors.get(name)
        self.tensors[name] = torch.zeros(shape, dtype=dtype, device=device) if found is None else found.to(device)
        return self.tensors[name]

    def total(self, name: str) -> Tensor:
        """The sum over all processes."""
        return all_reduce_sum(self.tensors[name], self.device)

    def together(self, value: float) -> float:
        """The sum of a number over all processes."""
        return float(all_reduce_sum(torch.tensor(value, dtype=torch.float64), self.device))

    def over(self, items: Sequence[T], what: str, unit: str, *, shared: bool = True) -> Iterator[T]:
        """Yield the items that are left, and save every so often. what, unit: for the progress shown.

        Of several processes each is given its share of the items, or with shared=False all of them, for those who share
        what is inside an item. All are at the same block of items at a time, and each has to take all that it is given,
        or to stop with the others. Raises ModelError for a loss that is not finite, and `error`.
        """
        state = process_state(self.device)
        num, mine = (state.num_processes, state.process_index) if shared else (1, 0)
        with progress(what, len(items), unit, done=self.position) as advance:
            for start in range(self.position, len(items), num):
                block = items[start : start + num]
                yield from block[mine : mine + 1]
                self._settle(block)
                loss = self.losses.get(block[-1])
                advance(len(block), "" if loss is None else f"loss {loss:.4f}")

    def once(self, name: str, work: Callable[["Accumulator"], CacheEntry]) -> CacheEntry:
        """What `work` makes with sums of its own; with a folder it is kept there, and not made again."""
        if self.folder is None:
            return work(Accumulator(self.device))
        part = Accumulator(self.device, self.folder / name, self.made_from)
        result = self.folder / f"{name}.safetensors"
        found = on_main_process(lambda: read_cache(result, self.made_from), self.device)
        if found is None:
            part.take_up()
            found = made = work(part)
            on_main_process(lambda: part._end(result, made), self.device)
        return found

    def _settle(self, block: Sequence[Any]) -> None:
        """Tell each other the losses of a block of items, and whether to save."""
        due = self.folder is not None and time.monotonic() >= self._due and process_state(self.device).is_main_process
        rows = [[self.losses.get(item, 0.0), float(item in self.losses)] for item in block]
        told = all_reduce_sum(
            torch.tensor([*rows, [float(due), float(self.error is not None)]], dtype=torch.float64), self.device
        ).tolist()
        if told[-1][1]:
            on_all_ranks(self._raise, self.device)
        for item, (loss, num_told) in zip(block, told, strict=False):
            if num_told:
                check_loss(loss, item)
                self.losses.pop(item, None)
                self.losses[item] = loss
        self.position += len(block)
        if told[-1][0]:
            self._save()

    def _raise(self) -> None:
        if self.error is not None:
            raise self.error

    def _save(self) -> None:
        assert self.folder is not None
        started, state = time.monotonic(), process_state(self.device)
        saved = f"at-{self.position:08d}-{state.num_processes:04d}"
        facts = {"position": self.position, "losses": [*self.losses.items()]}
        path = self.folder / f"{saved}-{state.process_index:04d}.safetensors"
        write_cache(path, (self.tensors, facts), self.made_from)
        state.wait_for_everyone()
        if state.is_main_process:
            for path in self.folder.glob("at-*.safetensors"):
                if not path.name.startswith(saved):
                    path.unlink()
        ended = time.monotonic()
        self._due = ended + max(SAVE_EVERY_S, (ended - started) / SAVING_SHARE)

    def take_up(self) -> None:
        """Take up the sums that an interrupted run has left, of any number of processes."""
        paths, facts = on_main_process(self._newest, self.device)
        if not paths:
            return
        self.position, self.losses = facts["position"], dict(facts["losses"])
        state = process_state(self.device)
        for path in paths[state.process_index :: state.num_processes]:
            found = read_cache(path, self.made_from)
            assert found is not None, f"{path} has changed"
            for name, value in found[0].items():
                self.tensors[name] = self.tensors[name] + value if name in self.tensors else value

    def _newest(self) -> tuple[list[Path], dict[str, Any]]:
        """The files of the newest sums that are whole, one per process that made them; none where there are none."""
        assert self.folder is not None
        saved: dict[tuple[str, str], list[Path]] = defaultdict(list)
        for path in sorted(self.folder.glob("at-*.safetensors")):
            _, position, num, _ = path.stem.split("-")
            saved[position, num].append(path)
        for (_, num), paths in sorted(saved.items(), reverse=True):
            if len(paths) == int(num):
                found = [read_cache(path, self.made_from) for path in paths]
                facts = [one[1] for one in found if one is not None]
                if len(facts) == len(found):
                    return paths, facts[0]
        return [], {}

    def _end(self, result: Path, made: CacheEntry) -> None:
        assert self.folder is not None
        write_cache(result, made, self.made_from)
        shutil.rmtree(self.folder, ignore_errors=True)


def check_loss(loss: float, timestep: int) -> None:
    """Raise ModelError for a loss that is not finite."""
    if not math.isfinite(loss):
        raise ModelError(f"the loss at timestep {timestep} is {loss}; the model or its images hold broken values")
