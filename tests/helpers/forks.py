"""Run commands in processes that can be killed, forked from an interpreter that has imported everything.

Run as a script, this module is that interpreter: it reads requests and writes results, one line of JSON each.
"""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Ended:
    """Result of a command in one or several processes.

    killed: whether one was killed. written: names of the files that all processes wrote, in order. output: what they
    printed. wall_s: seconds until all had ended.
    """

    status: int
    killed: bool
    written: list[str]
    output: str
    wall_s: float


class Forks:
    """A running interpreter that forks commands."""

    def __init__(self, process: "subprocess.Popen[str]", folder: Path) -> None:
        self._process = process
        self._folder = folder

    def run(
        self, words: Sequence[object], *, num_processes: int = 1, die_at: tuple[str, int] | None = None,
        die_after_s: float | None = None, environment: Mapping[str, str] | None = None,
    ) -> Ended:  # fmt: skip
        """Run a command, or a Python script. words: of the command, or path and arguments of the .py file.

        die_at: SIGKILL just before the n-th file whose path contains this text is put in place.

        environment: variables of a launcher, in addition to rank and world size.
        """
        log, output = self._folder / "written", self._folder / "output"
        for path in (log, output):
            path.write_text("")
        request = {
            "words": [str(word) for word in words], "num_processes": num_processes, "die_at": die_at,
            "die_after_s": die_after_s, "environment": dict(environment or {}), "log": str(log), "output": str(output),
        }  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        result = json.loads(self._process.stdout.readline())
        return Ended(result["status"], result["killed"], log.read_text().split(), output.read_text(), result["wall_s"])


@contextmanager
def forking(folder: Path, environment: Mapping[str, str] = os.environ) -> Iterator[Forks]:
    """Start the interpreter, and end it on exit."""
    process = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**environment, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        yield Forks(process, folder)
    finally:
        process.kill()
        process.communicate()


def _serve_requests() -> None:
    from diffprune.evaluation import inception_features as sets
    from diffprune.runs import accumulator as running_sums
    from diffprune.stages import stats_stage as stats
    from diffprune.stages import train_stage as train  # noqa: F401
    from tests import conftest

    running_sums.SAVE_EVERY_S, running_sums.MAX_SAVE_SHARE = 0.0, float("inf")
    stats.load_inception, sets.embed = conftest.quick_inception, conftest.quick_embed
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))), flush=True)


def _run(request: dict[str, Any]) -> dict[str, Any]:
    started = time.monotonic()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = set()
    for rank in range(request["num_processes"]):
        if pid := os.fork():
            running.add(pid)
        else:
            _run_rank(rank, port, request)
    status, killed = 0, False
    while running:
        pid, code = os.waitpid(-1, os.WNOHANG)
        if pid:
            running.discard(pid)
            status = status or os.waitstatus_to_exitcode(code)
            killed = killed or os.waitstatus_to_exitcode(code) == -signal.SIGKILL
        due = request["die_after_s"] is not None and time.monotonic() - started >= request["die_after_s"]
        if status or due:  # as a launcher does
            for other in running:
                os.kill(other, signal.SIGKILL)
        time.sleep(0.001)
    return {"status": status, "killed": killed, "wall_s": time.monotonic() - started}


def _run_rank(rank: int, port: int, request: dict[str, Any]) -> None:
    """Run the command as one rank, with the environment that a launcher sets."""
    status = 1
    try:
        num = request["num_processes"]
        os.environ |= request["environment"]
        if num > 1:
            os.environ |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num), "LOCAL_WORLD_SIZE": str(num),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            }  # fmt: skip
        output = os.open(request["output"], os.O_WRONLY | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        log = os.open(request["log"], os.O_WRONLY | os.O_APPEND)
        replace, seen = os.replace, [0]

        def recorded_replace(source: Any, target: Any, **more: Any) -> None:
            text, count = request["die_at"] or ("", -1)
            seen[0] += text in str(target)
            if seen[0] == count:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target, **more)
            os.write(log, f"{Path(target).name}\n".encode())

        os.replace = recorded_replace
        if request["words"][0].endswith(".py"):
            sys.argv = request["words"]
            runpy.run_path(sys.argv[0], run_name="__main__")
            status = 0
        else:
            from diffprune.cli.main import main

            status = main(request["words"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve_requests()
