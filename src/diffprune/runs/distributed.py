"""Collective operations between the ranks of one stage (torchrun, `accelerate launch`, SLURM)."""

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

COLLECTIVE_TIMEOUT = timedelta(days=7)
"""Timeout of a barrier: rank 0 compensates and saves alone. A launcher ends the other ranks when rank 0 fails."""

SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""Signals that ask a process to stop: pre-emption by SLURM, and Ctrl-C."""

T = TypeVar("T")


def process_state(device: str) -> PartialState:
    """Return rank, world size and device of this process.

    The first call joins the process group of a launcher. The backend is one for CPUs without an accelerator.
    """
    if "FSDP_CPU_RAM_EFFICIENT_LOADING" in os.environ:
        disable_fsdp_ram_efficient_loading()  # with it, transformers loads text encoders on rank 0 only
    return PartialState(cpu=device == "cpu" or not torch.accelerator.is_available(), timeout=COLLECTIVE_TIMEOUT)


def leave_process_group() -> None:
    """Wait for all ranks, then destroy the process group: exiting without this may abort in the group's threads."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def rank_shard(batches: Sequence[T], device: str) -> Sequence[T]:
    """Return this rank's shard of `batches`."""
    state = process_state(device)
    return batches[state.process_index :: state.num_processes]


def on_all_ranks(work: Callable[[], T], device: str) -> T:
    """Call `work` on every rank and return its result; a DiffpruneError on one rank is raised on all.

    Otherwise the other ranks would wait at their next barrier for the rank that failed.
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
    """Return the sum of a tensor over all ranks, on the tensor's device; on a single rank the tensor itself."""
    state = process_state(device)
    if state.num_processes == 1:
        return values
    reduced = values.to(state.device, copy=True)
    torch.distributed.all_reduce(reduced)
    return reduced.to(values.device)


def on_main_process(work: Callable[[], T], device: str) -> T:
    """Call `work` on rank 0 and return its result on every rank; the other ranks wait."""
    state = process_state(device)
    if state.num_processes == 1:
        return work()
    message = [on_all_ranks(lambda: work() if state.is_main_process else None, device)]
    broadcast_object_list(message)
    return cast(T, message[0])


@contextmanager
def recorded_signals() -> Iterator[list[int]]:
    """Record `SIGNALS` in a list instead of stopping the process; the caller checks the list and saves its state.

    A second SIGINT raises KeyboardInterrupt, except under a launcher: it forwards a Ctrl-C that its ranks already got.
    Only the main thread receives signals: in any other thread the list remains empty.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def record(number: int, frame: Any) -> None:
        if number == signal.SIGINT and signal.SIGINT in received and "RANK" not in os.environ:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, record) for number in SIGNALS}
    try:
        yield received
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
    """Open one `run_record` for all ranks: rank 0 writes `run.json`, the other ranks wait for it.

    For a stage that is not resumable, `Run.folder` is valid on rank 0 only. Arguments are those of `run_record`.
    """
    state = process_state(device)
    if state.is_main_process:
        with run_record(folder, stage, options, inputs, existing=existing, neutral=neutral, resumable=resumable) as run:
            broadcast_object_list([run.finished_before, run.inputs])
            yield run
            state.wait_for_everyone()
    else:
        message: list[Any] = [None, None]
        broadcast_object_list(message)
        yield Run(folder, finished_before=message[0], inputs=message[1])
        state.wait_for_everyone()
