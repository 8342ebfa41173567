"""Training that is killed, told to stop, or goes on with other processes."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import diffprune
from diffprune.cli.main import main
from diffprune.runs.atomic_files import read_json
from diffprune.runs.distributed import recorded_signals
from tests.conftest import tiny_pipeline
from tests.helpers.forks import Forks

STEPS = (
    "--steps", 14, "--preview-every", 7, "--preview-steps", 1, "--num-validation-images", 4, "--validate-every", 5,
)  # fmt: skip
TWO = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]
OF_TWO = (
    "--steps", 10, "--dropout", 0, "--num-validation-images", 5, "--validate-every", 4, "--optimizer", "adamw",
)  # fmt: skip
"""By AdamW: SOAP's eigenbasis turns with the rounding of a sum, and so do its steps."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As in `forks`, here and in the processes that are started: another number sums in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as there:
        there.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pruned_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pipeline = tiny_pipeline(dropout=0.1)
    folder = tmp_path_factory.mktemp("trainer") / "pruned"
    diffprune.prune(pipeline, diffprune.plan(pipeline, criterion="magnitude", ratio=0.25)).save_pretrained(folder)
    return folder


def words_for(folder: Path, out: Path, *more: object) -> list[str]:
    words = ["finetune", folder, "--teacher", folder, "--data", "digits", "--out", out, "--device", "cpu", *more]
    words += ["--mixed-precision", "no"]
    return [*map(str, words), "--batch-size", "8", "--checkpoint-every", "3", "--log-every", "2"]


def finetuned(folder: Path, out: Path, *more: object) -> int:
    return main(words_for(folder, out, *more))


def started(launcher: list[str], folder: Path, out: Path, *more: object) -> "subprocess.Popen[str]":
    words = [sys.executable, "-m", *launcher, "diffprune", *words_for(folder, out, *more)]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for_a_checkpoint(out: Path, running: "subprocess.Popen[str]") -> None:
    while not list(out.glob("checkpoints/step-*")) and running.poll() is None:
        time.sleep(0.01)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def result_of(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = diffprune.runs.run_record.read_json(folder / "run.json")["result"]
    return result


def assert_same(first: Path, second: Path) -> None:
    ours, theirs = weights(first), weights(second)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert result_of(first) == result_of(second)


def assert_close(first: Path, second: Path, start: Path) -> None:
    """Apart by less than a hundredth of the way from the start; sums of floats in another order grow so far."""
    begun, ours, theirs = weights(start), weights(first), weights(second)

    def way(origin: dict[str, Tensor]) -> float:
        return sum(float((ours[name] - origin[name]).square().sum()) for name in ours) ** 0.5

    assert way(theirs) < 0.01 * way(begun)
    for mine, other in zip(result_of(first)["history"], result_of(second)["history"], strict=True):
        assert mine == pytest.approx(other, rel=1e-3)


@pytest.fixture(scope="module")
def undisturbed(pruned_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert finetuned(pruned_folder, out, *STEPS) == 0
    return out


@pytest.fixture(scope="module")
def of_two(pruned_folder: Path, forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two processes, undisturbed."""
    out = tmp_path_factory.mktemp("two") / "out"
    ended = forks.run(words_for(pruned_folder, out, *OF_TWO), num_processes=2)
    assert ended.status == 0, ended.output
    return out


def test_a_killed_run_ends_in_the_weights_of_the_undisturbed_one(
    pruned_folder: Path, undisturbed: Path, forks: Forks, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    assert forks.run(words_for(pruned_folder, out, *STEPS), die_at=("step-0000006", 1)).killed
    assert [path.name for path in (out / "checkpoints").glob("step-*")] == ["step-0000003"]
    assert '"running"' in (out / "run.json").read_text()
    assert not (out / "model_index.json").exists()
    assert finetuned(pruned_folder, out, *STEPS) == 0
    assert_same(undisturbed, out)
    assert not (out / "checkpoints").exists()
    assert sorted(p.name for p in (out / "previews").iterdir()) == ["step-0000007.png", "step-0000014.png"]
    assert list((out / "logs").rglob("events.out.tfevents.*"))


@pytest.mark.slow
def test_runs_that_are_killed_at_thirty_random_moments_end_in_the_same_weights(
    pruned_folder: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out, random_moments, kills, longest = tmp_path / "out", random.Random(0), 0, 4.0
    while kills < 30:
        running, began = started([], pruned_folder, out, *STEPS), time.monotonic()
        try:
            running.communicate(timeout=random_moments.uniform(1.0, longest))
        except subprocess.TimeoutExpired:
            running.kill()
            running.communicate()
            kills += 1
            longest += 0.5  # until it gets to its end, on any machine
            continue
        assert running.returncode == 0
        assert_same(undisturbed, out)
        shutil.rmtree(out)
        longest = time.monotonic() - began
    assert finetuned(pruned_folder, out, *STEPS) == 0
    assert_same(undisturbed, out)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_and_the_same_command_goes_on(
    number: signal.Signals,
    pruned_folder: Path,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It comes in step 5; checkpoints are made every 3 steps, losses logged every 2."""
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    original, out = diffprune.training.trainer.draw, tmp_path / "out"

    def signalled(shape: Any, scheduler: Any, options: Any, step: int) -> Any:
        if step == 4:
            os.kill(os.getpid(), number)
        return original(shape, scheduler, options, step)

    with monkeypatch.context() as signalling:
        signalling.setattr("diffprune.training.trainer.draw", signalled)
        assert finetuned(pruned_folder, out, *STEPS) == 128 + number
    assert (
        f"stopped by {number.name} after step 5, which is saved; run the same command again" in capsys.readouterr().err
    )
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    assert (out / "checkpoints" / "step-0000005").exists()
    assert finetuned(pruned_folder, out, *STEPS) == 0
    assert_same(undisturbed, out)


def test_a_second_interrupt_stops_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), recorded_signals() as noted:
        os.kill(os.getpid(), signal.SIGINT)
        assert noted == [signal.SIGINT]
        os.kill(os.getpid(), signal.SIGINT)


def test_two_processes_train_what_one_trains(pruned_folder: Path, of_two: Path, tmp_path: Path) -> None:
    out = tmp_path / "one"
    assert finetuned(pruned_folder, out, *OF_TWO) == 0
    assert_close(out, of_two, pruned_folder)


@pytest.mark.slow
def test_two_processes_train_with_soap_as_well_as_one(pruned_folder: Path, tmp_path: Path) -> None:
    words = [*OF_TWO, "--optimizer", "soap", "--steps", 40]
    running = started(TWO, pruned_folder, tmp_path / "two", *words)
    _, said = running.communicate()
    assert running.returncode == 0, said
    assert finetuned(pruned_folder, tmp_path / "one", *words) == 0
    histories = (read_json(tmp_path / name / "run.json")["result"]["history"] for name in ("one", "two"))
    one, two = ([row["validation_error"] for row in h if "validation_error" in row] for h in histories)
    assert min(one) < 0.9 * one[0]
    assert two == pytest.approx(one, rel=0.05)


@pytest.mark.slow
def test_two_processes_of_which_one_is_told_to_stop_go_on_as_two_or_as_one(
    pruned_folder: Path, of_two: Path, tmp_path: Path
) -> None:
    out = tmp_path / "two"
    running = started(TWO, pruned_folder, out, *OF_TWO)
    wait_for_a_checkpoint(out, running)
    workers = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    os.kill(int(workers[-1]), signal.SIGTERM)
    _, said = running.communicate()
    assert running.returncode != 0
    assert "run the same command again to resume" in said
    assert '"running"' in (out / "run.json").read_text()
    shutil.copytree(out, tmp_path / "one")
    assert finetuned(pruned_folder, tmp_path / "one", *OF_TWO) == 0
    assert_close(tmp_path / "one", of_two, pruned_folder)
    running = started(TWO, pruned_folder, out, *OF_TWO)
    _, said = running.communicate()
    assert running.returncode == 0, said
    assert_same(out, of_two)
