"""Budgets on the clock: how a choice is found, with a clock that counts parameters in place of time."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from diffusers import DDPMPipeline
from torch import nn

import diffprune
from diffprune.cli.main import main
from diffprune.planning import latency
from diffprune.runs.atomic_files import read_json
from tests import conftest

Clock = Callable[[Callable[[], float]], list[int]]


def tiny_pipeline() -> DDPMPipeline:
    """Return a pipeline of one level: each candidate of a search is built and counted."""
    return conftest.tiny_pipeline(
        block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)
    )


def num_params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Set a clock that tells a model's parameters times what `fault` gives; returns the batch sizes asked for."""

    def set_it(fault: Callable[[], float] = lambda: 1.0) -> list[int]:
        seen = []

        def timed(model: nn.Module, *, batch_size: int) -> float:
            seen.append(batch_size)
            return num_params(model) * fault()

        monkeypatch.setattr(latency, "latency_ms", timed)
        return seen

    return set_it


def test_a_share_of_the_time_stays_at_most(clock: Clock) -> None:
    seen = clock()
    plan = diffprune.plan(tiny_pipeline(), criterion="magnitude", keep_latency=0.5, latency_batch_size=3)
    assert 0.475 <= plan.after.params / plan.before.params <= 0.5
    assert plan.details["latency"] == {"before_ms": plan.before.params, "after_ms": plan.after.params}
    assert plan.summary()["latency_after_ms"] == plan.after.params
    assert set(seen) == {3}


def test_milliseconds_stay_at_most(clock: Clock) -> None:
    clock()
    pipeline = tiny_pipeline()
    asked = 0.4 * num_params(pipeline.unet)
    plan = diffprune.plan(pipeline, criterion="magnitude", max_latency_ms=asked)
    assert 0.95 * asked <= plan.after.params <= asked
    with pytest.raises(diffprune.OptionError, match=r"the unpruned model takes .* ms on cpu"):
        diffprune.plan(pipeline, criterion="magnitude", max_latency_ms=2 * num_params(pipeline.unet))


def test_budgets_hold_together(clock: Clock) -> None:
    clock()
    plan = diffprune.plan(tiny_pipeline(), criterion="magnitude", keep_latency=0.6, keep_macs=0.3)
    assert plan.after.macs <= 0.3 * plan.before.macs
    assert plan.after.params <= 0.6 * plan.before.params


def test_a_choice_that_was_timed_wrongly_is_looked_for_again(clock: Clock) -> None:
    """Every candidate, timed after the original, takes longer at first, as on a machine that is busy for a while."""
    readings = itertools.count()

    def fault() -> float:
        number = next(readings)
        return 1.6 if number % 2 and number < 40 else 1.0

    clock(fault)
    plan = diffprune.plan(tiny_pipeline(), criterion="magnitude", keep_latency=0.6)
    assert 0.55 <= plan.after.params / plan.before.params <= 0.63
    assert next(readings) > 100


def test_what_cannot_be_is_refused(clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clock()
    with pytest.raises(diffprune.OptionError, match=r"cannot be met.*smallest model keeps .* of the time"):
        diffprune.plan(tiny_pipeline(), criterion="magnitude", keep_latency=0.01)
    with pytest.raises(diffprune.OptionError, match="keep_latency and max_latency_ms are two forms"):
        diffprune.plan(tiny_pipeline(), criterion="magnitude", keep_latency=0.5, max_latency_ms=1.0)
    assert main(["plan", "ddpm-cifar10", "--keep-latency", "0.5"]) == 2
    assert "an architecture without weights" in capsys.readouterr().err
    tiny_pipeline().save_pretrained(tmp_path / "model")
    words = ["--criterion", "magnitude", "--keep-latency", "0.5", "--out", str(tmp_path / "plan.json")]
    assert main(["plan", str(tmp_path / "model"), *words]) == 0
    assert read_json(tmp_path / "plan.json")["details"]["latency"]["before_ms"] > 0
