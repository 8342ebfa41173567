"""Running sums of a long pass over items: sharded over ranks, saved to disk, resumed after an interruption."""

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
MAX_SAVE_SHARE = 0.05
"""Largest share of a pass's time spent on saving: large sums are saved less often than every `SAVE_EVERY_S`."""

T = TypeVar("T", bound=Hashable)


class Accumulator:
    """Sums over a pass's items, one partial sum per rank.

    tensors: name -> sum; `zeros` creates them, the caller adds to them in place.
    losses: item -> loss; the caller sets it inside the loop, and after each item it is the sum over all ranks.
    position: number of finished items.
    error: set by the caller when an item fails; all ranks then raise it, and the item does not count as finished.
    folder: where the sums are saved during the pass; None saves nothing.
    key: what the sums depend on, as JSON types; saved sums with another key are not used.
    """

    def __init__(self, device: str = "auto", folder: Path | None = None, key: Mapping[str, Any] | None = None) -> None:
        self.device = device
        self.folder = folder
        self.key = key or {}
        self.tensors: dict[str, Tensor] = {}
        self.losses: dict[Any, float] = {}
        self.position = 0
        self.error: DiffpruneError | None = None
        self._next_save = time.monotonic() + SAVE_EVERY_S

    def zeros(
        self, name: str, *shape: int, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Return this rank's sum of that name: zeros, or the restored sum of an interrupted run."""
        restored = self.tensors.get(name)
        self.tensors[name] = torch.zeros(shape, dtype=dtype, device=device) if restored is None else restored.to(device)
        return self.tensors[name]

    def total(self, name: str) -> Tensor:
        """Return the sum over all ranks."""
        return all_reduce_sum(self.tensors[name], self.device)

    def all_reduce(self, value: float) -> float:
        """Return the sum of a number over all ranks."""
        return float(all_reduce_sum(torch.tensor(value, dtype=torch.float64), self.device))

    def iterate(self, items: Sequence[T], description: str, unit: str, *, sharded: bool = True) -> Iterator[T]:
        """Yield the unfinished items and save at intervals. description, unit: for the progress display.

        sharded: each rank gets its own items; False gives every rank all items, for loops that shard inside an item.
        The ranks synchronize after each block of items: all must run the loop to its end, or stop together.
        Raises ModelError for a loss that is not finite, and `error` once it is set.
        """
        state = process_state(self.device)
        stride, rank = (state.num_processes, state.process_index) if sharded else (1, 0)
        with progress(description, len(items), unit, done=self.position) as advance:
            for start in range(self.position, len(items), stride):
                block = items[start : start + stride]
                yield from block[rank : rank + 1]
                self._synchronize(block)
                loss = self.losses.get(block[-1])
                advance(len(block), "" if loss is None else f"loss {loss:.4f}")

    def cached(self, name: str, compute: Callable[["Accumulator"], CacheEntry]) -> CacheEntry:
        """Return the result of `compute`, which gets an accumulator of its own; with a folder, cache it there."""
        if self.folder is None:
            return compute(Accumulator(self.device))
        sums = Accumulator(self.device, self.folder / name, self.key)
        path = self.folder / f"{name}.safetensors"
        cached = on_main_process(lambda: read_cache(path, self.key), self.device)
        if cached is not None:
            return cached
        sums.restore()
        result = compute(sums)
        on_main_process(lambda: sums._finish(path, result), self.device)
        return result

    def _synchronize(self, block: Sequence[Any]) -> None:
        """All-reduce the losses of a block of items, raise `error` on all ranks, and save when it is due."""
        save_due = self.folder is not None and time.monotonic() >= self._next_save
        save_due &= process_state(self.device).is_main_process
        rows = [[self.losses.get(item, 0.0), float(item in self.losses)] for item in block]
        *reduced, (num_saves, num_errors) = all_reduce_sum(
            torch.tensor([*rows, [float(save_due), float(self.error is not None)]], dtype=torch.float64), self.device
        ).tolist()
        if num_errors:
            on_all_ranks(self._raise, self.device)
        for item, (loss, num_losses) in zip(block, reduced, strict=True):
            if num_losses:
                check_loss(loss, item)
                self.losses.pop(item, None)
                self.losses[item] = loss
        self.position += len(block)
        if num_saves:
            self._save()

    def _raise(self) -> None:
        if self.error is not None:
            raise self.error

    def _save(self) -> None:
        assert self.folder is not None
        started, state = time.monotonic(), process_state(self.device)
        prefix = f"at-{self.position:08d}-{state.num_processes:04d}"
        facts = {"position": self.position, "losses": [*self.losses.items()]}
        path = self.folder / f"{prefix}-{state.process_index:04d}.safetensors"
        write_cache(path, (self.tensors, facts), self.key)
        state.wait_for_everyone()
        if state.is_main_process:
            for path in self.folder.glob("at-*.safetensors"):
                if not path.name.startswith(prefix):
                    path.unlink()
        ended = time.monotonic()
        self._next_save = ended + max(SAVE_EVERY_S, (ended - started) / MAX_SAVE_SHARE)

    def restore(self) -> None:
        """Restore the sums that an interrupted run saved; its world size may differ."""
        paths, facts = on_main_process(self._newest_save, self.device)
        if not paths:
            return
        self.position, self.losses = facts["position"], dict(facts["losses"])
        state = process_state(self.device)
        for path in paths[state.process_index :: state.num_processes]:
            saved = read_cache(path, self.key)
            assert saved is not None, f"{path} has changed"
            for name, value in saved[0].items():
                self.tensors[name] = self.tensors[name] + value if name in self.tensors else value

    def _newest_save(self) -> tuple[list[Path], dict[str, Any]]:
        """Return the files, one per rank, and the facts of the newest complete and valid save; empty without one."""
        assert self.folder is not None
        by_save: dict[tuple[str, str], list[Path]] = defaultdict(list)
        for path in sorted(self.folder.glob("at-*.safetensors")):
            _, position, world_size, _ = path.stem.split("-")
            by_save[position, world_size].append(path)
        for (_, world_size), paths in sorted(by_save.items(), reverse=True):
            if len(paths) == int(world_size):
                entries = [read_cache(path, self.key) for path in paths]
                facts = [entry[1] for entry in entries if entry is not None]
                if len(facts) == len(entries):
                    return paths, facts[0]
        return [], {}

    def _finish(self, path: Path, result: CacheEntry) -> None:
        assert self.folder is not None
        write_cache(path, result, self.key)
        shutil.rmtree(self.folder, ignore_errors=True)


def check_loss(loss: float, timestep: int) -> None:
    """Raise ModelError for a loss that is not finite."""
    if not math.isfinite(loss):
        raise ModelError(
            f"the loss at timestep {timestep} is {loss}; check the model's weights and the images for non-finite values"
        )
