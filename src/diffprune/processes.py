"""Several processes (torchrun, `accelerate launch`, SLURM) on one stage: shares, sums, one `run.json`."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from diffprune.errors import DiffpruneError
from diffprune.records import Existing, Run, run_record

PATIENCE = timedelta(days=7)
"""How long processes wait for the first one, which scores and saves alone; a launcher ends them when it fails."""

T = TypeVar("T")


def process_state(device: str) -> PartialState:
    """The state of this process; joins the others when started by a launcher, on CPUs where there is nothing else."""
    return PartialState(cpu=device == "cpu" or not torch.accelerator.is_available(), timeout=PATIENCE)


def take_leave() -> None:
    """Take leave of the other processes, at the end; one that just goes may abort on the threads of its group."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def my_share(batches: Sequence[T], device: str) -> Sequence[T]:
    """Those of the batches that are this process's."""
    state = process_state(device)
    return batches[state.process_index :: state.num_processes]


def agreed(work: Callable[[], T], device: str) -> T:
    """What `work` returns in this process; where it raises a DiffpruneError in one, every process raises it.

    Without, the others would wait for the one that has failed.
    """
    if process_state(device).num_processes == 1:
        return work()
    errors: list[DiffpruneError | None] = [None]
    try:
        result = work()
    except DiffpruneError as error:
        errors = [error]
    first = next((error for error in gather_object(errors) if error is not None), None)
    if first is not None:
        raise first
    return result


def summed(values: Tensor, device: str) -> Tensor:
    """The sum of a tensor over all processes, where it was; alone, the tensor itself."""
    state = process_state(device)
    if state.num_processes == 1:
        return values
    moved = values.to(state.device, copy=True)
    torch.distributed.all_reduce(moved)
    return moved.to(values.device)


def by_main(work: Callable[[], T], device: str) -> T:
    """What `work` returns in the main process, in every process; the others wait for it."""
    state = process_state(device)
    if state.num_processes == 1:
        return work()
    found = agreed(lambda: work() if state.is_main_process else None, device)
    message = [found]
    broadcast_object_list(message)
    return cast(T, message[0])


@contextmanager
def shared_run(
    folder: Path,
    stage: str,
    options: Mapping[str, Any],
    inputs: Mapping[str, str | None],
    *,
    device: str,
    existing: Existing = "refuse",
    neutral: Collection[str] = (),
    resumable: bool = True,
) -> Iterator[Run]:
    """As `records.run_record`: the main process keeps `run.json`, the others wait for it.

    Of a stage that is not resumable, `Run.folder` is right in the main process alone.
    """
    state = process_state(device)
    if state.is_main_process:
        with run_record(folder, stage, options, inputs, existing=existing, neutral=neutral, resumable=resumable) as run:
            broadcast_object_list([run.finished_before])
            yield run
            state.wait_for_everyone()
    else:
        message: list[Any] = [None]
        broadcast_object_list(message)
        yield Run(folder, finished_before=bool(message[0]))
        state.wait_for_everyone()
