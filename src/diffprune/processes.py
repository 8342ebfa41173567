"""Several processes (torchrun, `accelerate launch`, SLURM) on one stage: who does what, and one `run.json`."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from diffprune.records import Existing, Run, run_record


def process_state(device: str) -> PartialState:
    """The state of this process; joins the others when started by a launcher."""
    return PartialState(cpu=device == "cpu")


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
) -> Iterator[Run]:
    """As `records.run_record(resumable=True)`: the main process keeps `run.json`, the others wait for it."""
    state = process_state(device)
    if state.is_main_process:
        with run_record(folder, stage, options, inputs, existing=existing, neutral=neutral, resumable=True) as run:
            broadcast_object_list([run.finished_before])
            yield run
            state.wait_for_everyone()
    else:
        message: list[Any] = [None]
        broadcast_object_list(message)
        yield Run(folder, finished_before=bool(message[0]))
        state.wait_for_everyone()
