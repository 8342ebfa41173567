"""The training callback `on_step`."""

from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline

import diffprune
from diffprune.calibration.calibration_set import images_for
from diffprune.errors import ModelError, OptionError
from diffprune.options import FinetuneOptions
from diffprune.pipelines.diffusion import process_of
from diffprune.training.history import History
from diffprune.training.step_callback import OnStep, StepFacts
from diffprune.training.trainer import train_denoiser

QUICK = {"data": "digits", "steps": 3, "batch_size": 4, "log_every": 1, "learning_rate": 1e-3, "tracker": "none"}


def run(pipeline: DDPMPipeline, on_step: OnStep | None, folder: Path | None = None, **changes: object) -> tuple:
    process = process_of(pipeline)
    options = FinetuneOptions(**{**QUICK, **changes})
    return train_denoiser(
        pipeline.unet, process, images_for(process, "digits"), options, folder=folder, on_step=on_step
    )


def test_each_step_is_reported_with_the_loss_and_the_rate_of_the_history(pipeline: DDPMPipeline) -> None:
    reported: History = []
    _, history = run(
        pipeline,
        lambda step, facts: reported.append({"step": step, "loss": facts.loss, "learning_rate": facts.learning_rate}),
        warmup_steps=2,
    )
    assert reported == [{name: row[name] for name in ("step", "loss", "learning_rate")} for row in history]
    assert [row["step"] for row in reported] == [1, 2, 3]


def test_the_ema_denoiser_of_the_last_step_is_the_result(pipeline: DDPMPipeline) -> None:
    denoisers = []
    trained, _ = run(pipeline, lambda step, facts: denoisers.append(facts.ema_denoiser()), ema_decay=0.5)
    weights = [denoiser.conv_in.weight for denoiser in denoisers]
    assert torch.equal(weights[-1], trained.conv_in.weight)
    assert not torch.equal(weights[0], weights[-1])
    assert not any(denoiser.training for denoiser in denoisers)


def test_a_callback_that_draws_and_evaluates_changes_nothing(pipeline: DDPMPipeline) -> None:
    def disturb(step: int, facts: StepFacts) -> None:
        torch.manual_seed(step)
        denoiser = facts.ema_denoiser()
        denoiser(torch.randn(1, 1, 16, 16), 1).sample.sum().backward()
        denoiser.conv_in.weight.data.zero_()

    alone, disturbed = (run(pipeline, callback, dropout=0.5)[0] for callback in (None, disturb))
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), disturbed.parameters(), strict=True))


def test_an_exception_of_the_callback_propagates_after_the_checkpoint(pipeline: DDPMPipeline, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(step: int, facts: StepFacts) -> None:
        if step == 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        run(pipeline, stop, tmp_path, checkpoint_every=1)
    resumed = []
    run(pipeline, lambda step, facts: resumed.append(step), tmp_path, checkpoint_every=1)
    assert resumed == [3]


def test_only_the_main_process_calls_it(pipeline: DDPMPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.Accelerator.is_main_process", False)
    steps: list[int] = []
    run(pipeline, lambda step, facts: steps.append(step))
    assert steps == []


def test_sharded_weights_are_not_copied_by_one_rank() -> None:
    class Sharded:
        sharded = True

    with pytest.raises(ModelError, match="sharded by FSDP is not supported"):
        StepFacts(0.0, 0.0, Sharded()).ema_denoiser()  # type: ignore[arg-type]


def test_finetune_and_train_take_the_callback_as_a_keyword(pipeline: DDPMPipeline) -> None:
    steps = []
    diffprune.finetune(pipeline, **{**QUICK, "steps": 2}, on_step=lambda step, facts: steps.append(step))
    assert steps == [1, 2]
    diffprune.train(
        "digits", architecture="ddpm-digits", steps=1, batch_size=4, on_step=lambda step, facts: steps.append(step)
    )
    assert steps == [1, 2, 1]


def test_other_functions_do_not_take_it(pipeline: DDPMPipeline) -> None:
    with pytest.raises(OptionError, match="on_step: no such option"):
        diffprune.plan(pipeline, criterion="magnitude", on_step=print)
