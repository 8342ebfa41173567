"""Several processes (torchrun, `accelerate launch`, SLURM) on one stage: shares, sums, signals, one `run.json`."""

import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, disable_fsdp_ram_efficient_loading, gather_object
from torch import Tensor

from diffprune.errors import DiffpruneError
from diffprune.runs.run_record import Existing, Run, run_record

PATIENCE = timedelta(days=7)
"""How long processes wait for the first one, which compensates and saves alone; a launcher ends them when it fails."""

SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""What asks a process to stop: SLURM's pre-emption, and Ctrl-C."""

T = TypeVar("T")


def process_state(device: str) -> PartialState:
    """The state of this process; joins the others when started by a launcher, on CPUs where there is nothing else."""
    if "FSDP_CPU_RAM_EFFICIENT_LOADING" in os.environ:
        disable_fsdp_ram_efficient_loading()  # transformers would load text encoders in the first process alone
    return PartialState(cpu=device == "cpu" or not torch.accelerator.is_available(), timeout=PATIENCE)


def leave_process_group() -> None:
    """Take leave of the other processes, at the end; one that just goes may abort on the threads of its group."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def rank_shard(batches: Sequence[T], device: str) -> Sequence[T]:
    """Those of the batches that are this process's."""
    state = process_state(device)
    return batches[state.process_index :: state.num_processes]


def on_all_ranks(work: Callable[[], T], device: str) -> T:
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


def all_reduce_sum(values: Tensor, device: str) -> Tensor:
    """The sum of a tensor over all processes, where it was; alone, the tensor itself."""
    state = process_state(device)
    if state.num_processes == 1:
        return values
    moved = values.to(state.device, copy=True)
    torch.distributed.all_reduce(moved)
    return moved.to(values.device)


def on_main_process(work: Callable[[], T], device: str) -> T:
    """What `work` returns in the main process, in every process; the others wait for it."""
    state = process_state(device)
    if state.num_processes == 1:
        return work()
    found = on_all_ranks(lambda: work() if state.is_main_process else None, device)
    message = [found]
    broadcast_object_list(message)
    return cast(T, message[0])


@contextmanager
def recorded_signals() -> Iterator[list[int]]:
    """Yield a list that `SIGNALS` are put into as they come, so that the one who asks for it can stop in good order.

    A second SIGINT interrupts at once, except under a launcher, which passes Ctrl-C on to processes that have had it.
    Elsewhere than in the main thread, which alone receives signals, nothing is noted.
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return

    def note(number: int, frame: Any) -> None:
        if number == signal.SIGINT and signal.SIGINT in noted and "RANK" not in os.environ:
            raise KeyboardInterrupt
        noted.append(number)

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
