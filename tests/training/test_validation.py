"""Validation on held-out images: the best weights, and an end when they get no better."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline
from torch import nn

import diffprune
from diffprune.calibration.calibration_set import images_for
from diffprune.errors import DataError, OptionError
from diffprune.options import FinetuneOptions
from diffprune.pipelines.diffusion import process_of
from diffprune.training.batches import TrainingData
from diffprune.training.history import VALIDATION, History
from diffprune.training.trainer import result_step, train_denoiser
from diffprune.training.validation import Validation
from tests.conftest import tiny_pipeline

QUICK: dict[str, Any] = {
    "data": "digits", "steps": 8, "batch_size": 4, "log_every": 3, "num_validation_images": 6, "validate_every": 2,
    "tracker": "none", "device": "cpu",
}  # fmt: skip
WORSE = {"learning_rate": 0.5, "ema_decay": 0.0}
"""Every step makes the model worse."""


def trained(folder: Path | None = None, **changes: Any) -> tuple[nn.Module, History]:
    pipeline = tiny_pipeline()
    process = process_of(pipeline)
    options = FinetuneOptions(**{**QUICK, **changes})
    return train_denoiser(pipeline.unet, process, images_for(process, "digits"), options, folder=folder)


def validated(history: History) -> dict[int, float]:
    return {int(row["step"]): row[VALIDATION] for row in history if VALIDATION in row}


def feed(pipeline: DDPMPipeline, image_folder: Path, **changes: Any) -> TrainingData:
    process = process_of(pipeline)
    options = FinetuneOptions(**{**QUICK, **changes})
    return TrainingData(process, images_for(process, str(image_folder)), options, torch.device("cpu"))


def test_training_never_sees_the_held_out_images(pipeline: DDPMPipeline, image_folder: Path) -> None:
    split = feed(pipeline, image_folder, num_validation_images=5)
    seen = {index for step in range(14) for index in split.indices(step)}
    assert len(set(split.held_out_indices)) == 5
    assert seen.isdisjoint(split.held_out_indices)
    assert seen | set(split.held_out_indices) == set(range(12))
    assert set(feed(pipeline, image_folder, num_validation_images=5, seed=1).held_out_indices) != set(
        split.held_out_indices
    )


def test_the_error_is_the_same_each_time_and_whatever_the_batches(pipeline: DDPMPipeline, image_folder: Path) -> None:
    first, again = (Validation(feed(pipeline, image_folder), 6) for _ in range(2))
    assert first.error(pipeline.unet) == again.error(pipeline.unet)
    assert Validation(feed(pipeline, image_folder), 4).error(pipeline.unet) == pytest.approx(again.error(pipeline.unet))
    batch = first.batches[0]
    assert batch.timesteps.tolist() == [1, 5, 8, 11, 15, 18]  # of 20, evenly
    output = pipeline.unet(batch.noisy, batch.timesteps).sample.detach()
    assert first.error(pipeline.unet) == pytest.approx(float((output - batch.target).square().mean()))


def test_validation_shows_progress_in_the_history() -> None:
    _, history = trained(learning_rate=1e-3, ema_decay=0.5)
    errors = validated(history)
    assert list(errors) == [0, 2, 4, 6, 8]
    assert errors[8] < 0.9 * errors[0]
    assert result_step(history) == min(errors, key=lambda step: errors[step])
    assert [row["step"] for row in history if "loss" in row] == [2, 3, 4, 6, 8]


def test_the_result_is_the_best_weights() -> None:
    model, history = trained(**WORSE)
    start = tiny_pipeline().unet.state_dict()
    assert result_step(history) == 0
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())
    assert history[-1]["step"] == 8


def test_training_stops_when_the_error_has_not_fallen_for_so_long() -> None:
    _, history = trained(**WORSE, early_stop=2)
    assert list(validated(history)) == [0, 2, 4]
    assert history[-1]["step"] == 4


def test_a_resumed_run_knows_its_best_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed, history = trained(**WORSE, early_stop=3)
    original = diffprune.training.trainer.save_checkpoint

    def save_and_die(*given: Any) -> None:
        original(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr("diffprune.training.trainer.save_checkpoint", save_and_die)
        for step in (3, 6):  # the second at its early stop
            with pytest.raises(KeyboardInterrupt):
                trained(tmp_path, **WORSE, early_stop=3, checkpoint_every=3)
            assert (tmp_path / "checkpoints" / f"step-000000{step}").exists()
    resumed, again = trained(tmp_path, **WORSE, early_stop=3, checkpoint_every=3)
    assert again == history
    assert history[-1]["step"] == 6
    assert all(torch.equal(value, undisturbed.state_dict()[name]) for name, value in resumed.state_dict().items())


def test_what_cannot_be_validated_is_refused(pipeline: DDPMPipeline, image_folder: Path) -> None:
    with pytest.raises(OptionError, match="early_stop: needs num_validation_images"):
        diffprune.finetune(pipeline, data=image_folder, early_stop=2)
    with pytest.raises(DataError, match="got 12 of 12 images, which leaves none"):
        diffprune.finetune(pipeline, data=image_folder, num_validation_images=12)
