"""Training that goes wrong stops, and keeps what was good."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor

import diffprune.training.trainer
from diffprune.cli.main import main
from diffprune.options import FinetuneOptions
from diffprune.training.history import NUM_BINS, DivergenceError, TrainingLog, bin_name, step_facts
from diffprune.training.train_state import TrainState
from tests.conftest import tiny_unet

STEPS = ["--data", "digits", "--steps", "6", "--batch-size", "4", "--checkpoint-every", "1", "--log-every", "1"]


def noted(log: TrainingLog, losses: Any) -> None:
    for loss in losses:
        log.add_step([float(loss), *[0.0] * 2 * NUM_BINS])


def test_a_loss_ten_times_its_lowest_mean_stops() -> None:
    log = TrainingLog()
    noted(log, [1.0, *[0.1] * 200])
    with pytest.raises(DivergenceError, match=r"mean loss of the 50 steps") as caught:
        noted(log, [2.0] * 50)
    assert 201 < log.step <= 251
    assert caught.value.sound_step <= 201


def test_losses_that_differ_by_the_timesteps_alone_do_not_stop() -> None:
    """Of batches of one image they spread over two decades."""
    for seed in range(3):
        noted(TrainingLog(), 10.0 ** np.random.default_rng(seed).uniform(-2, 0, 20_000))


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops(loss: float) -> None:
    log = TrainingLog()
    noted(log, [0.1, 0.1])
    with pytest.raises(DivergenceError, match=r"at step 3: training diverged; lower learning_rate"):
        noted(log, [loss])
    assert log.step == 2


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("clip", [1.0, None])
def test_a_gradient_that_is_no_number_does_not_reach_the_weights(precision: str, clip: float | None) -> None:
    options = FinetuneOptions(grad_clip=clip, mixed_precision=precision, device="cpu")
    state = TrainState(tiny_unet(), options, Accelerator(mixed_precision=precision, cpu=True), torch.device("cpu"))
    for parameter in state.bare.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.bare.conv_in.weight.grad[0, 0] = math.nan
    with pytest.raises(DivergenceError, match="gradient is nan at step 8"):
        state.update(7)
    AcceleratorState._reset_state()
    before = tiny_unet().state_dict()
    for model in (state.bare, state.averaged()):
        assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_the_last_good_state_is_kept_and_named(
    pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["finetune", str(pipeline_folder), *STEPS]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    original, calls = diffprune.training.objective.denoising_loss, iter(range(100))

    def poisoned(output: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
        return original(output, target, weights) * (math.nan if next(calls) == 3 else 1.0)

    with monkeypatch.context() as poisoning:
        poisoning.setattr("diffprune.training.objective.denoising_loss", poisoned)
        assert main([*words, "--out", str(tmp_path / "out")]) == 1
    kept = tmp_path / "out" / "checkpoints" / "step-0000003"
    assert str(kept) in capsys.readouterr().err
    assert all(torch.isfinite(value).all() for value in load_file(kept / "model.safetensors").values())
    assert main([*words, "--out", str(tmp_path / "out")]) == 0  # the poison is gone
    weights = [load_file(tmp_path / f / "unet" / "diffusion_pytorch_model.safetensors") for f in ("whole", "out")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_noise_errors_are_logged_by_timestep() -> None:
    facts = step_facts([torch.tensor(2.0)], torch.tensor([1.0, 2.0, 3.0, 6.0]), torch.tensor([0, 4, 5, 19]), 20)
    log = TrainingLog()
    log.add_step(facts.tolist())
    row = log.close_row(0.1, 20)
    assert row == {
        "step": 1, "loss": 2.0, "learning_rate": 0.1, "noise_error_t0_4": 1.5, "noise_error_t5_9": 3.0,
        "noise_error_t15_19": 6.0,
    }  # fmt: skip


@pytest.mark.parametrize("num_timesteps", [3, 10, 20, 1000])
def test_the_names_of_bins_are_their_timesteps(num_timesteps: int) -> None:
    timesteps = torch.arange(num_timesteps)
    counts = step_facts([torch.tensor(0.0)], torch.zeros(num_timesteps), timesteps, num_timesteps)[1 + NUM_BINS :]
    for bin_, count in enumerate(counts.tolist()):
        first, last = (int(part.strip("t")) for part in bin_name(bin_, num_timesteps).split("_"))
        assert count == last - first + 1
