"""The training loop."""

import copy
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline
from torch import Tensor, nn

import diffprune
from diffprune.calibration.calibration_set import images_for
from diffprune.errors import ModelError, OptionError
from diffprune.options import FinetuneOptions
from diffprune.pipelines.diffusion import process_of
from diffprune.training.losses import distillation_loss
from diffprune.training.trainer import train_denoiser

QUICK = {"data": "digits", "steps": 4, "batch_size": 8, "log_every": 1, "learning_rate": 1e-3}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def moved(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    return sum(float((first[name] - second[name]).square().sum()) for name in first) ** 0.5


def trained(pipeline: DDPMPipeline, **changes: object) -> tuple[nn.Module, list[dict[str, float]]]:
    options = FinetuneOptions(**{**QUICK, **changes})
    return train_denoiser(pipeline.unet, process_of(pipeline), images_for(process_of(pipeline), "digits"), options)


def test_finetuning_lowers_the_loss_and_leaves_the_model_alone(pipeline: DDPMPipeline) -> None:
    before = copy.deepcopy(pipeline.unet.state_dict())
    losses: list[float] = []
    small = diffprune.finetune(
        pipeline, None, **{**QUICK, "steps": 30, "ema_decay": 0.5}, on_step=lambda _, facts: losses.append(facts.loss)
    )
    assert losses[-1] < 0.7 * losses[0]
    assert equal(before, pipeline.unet.state_dict())
    assert not equal(before, small.unet.state_dict())
    assert not small.unet.training


def test_exactly_the_asked_steps_are_made(pipeline: DDPMPipeline) -> None:
    _, history = trained(pipeline, steps=7, log_every=2, accumulation_steps=2)
    assert [row["step"] for row in history] == [2, 4, 6, 7]


def test_accumulation_makes_one_step_of_several_passes(pipeline: DDPMPipeline) -> None:
    by = {"optimizer": "adamw", "ema_decay": 0.0}
    whole, parts = (trained(pipeline, accumulation_steps=n, **by) for n in (1, 4))
    assert [row["loss"] for row in whole[1]] == pytest.approx([row["loss"] for row in parts[1]], rel=1e-3)
    assert moved(whole[0].state_dict(), parts[0].state_dict()) < 0.02 * moved(
        whole[0].state_dict(), pipeline.unet.state_dict()
    )


def test_the_warm_up_and_the_schedule_are_followed(pipeline: DDPMPipeline) -> None:
    _, history = trained(pipeline, steps=4, warmup_steps=2, schedule="linear")
    assert [row["learning_rate"] for row in history] == pytest.approx([5e-4, 1e-3, 5e-4, 0.0])


def test_the_result_holds_ema_weights(pipeline: DDPMPipeline) -> None:
    slow, fast = (trained(pipeline, ema_decay=decay)[0].state_dict() for decay in (0.9999, 0.0))
    start = pipeline.unet.state_dict()
    name = "conv_in.weight"
    assert (slow[name] - start[name]).norm() < (fast[name] - start[name]).norm()


def test_dropout_acts_while_training_only(pipeline: DDPMPipeline) -> None:
    plain, dropped = (trained(pipeline, dropout=d) for d in (None, 0.5))
    assert plain[1] != dropped[1]
    assert {m.p for m in dropped[0].modules() if isinstance(m, nn.Dropout)} == {0.0}


def test_the_gradient_norm_is_clipped(pipeline: DDPMPipeline) -> None:
    free, clipped = (trained(pipeline, optimizer="adam", grad_clip=c)[0].state_dict() for c in (None, 1e-12))
    assert not equal(free, clipped)
    name = "conv_in.weight"  # Adam's epsilon is 1e-8: with gradients of 1e-12 the weights hardly move
    assert (clipped[name] - pipeline.unet.state_dict()[name]).abs().max() < 1e-5


def test_bf16_trains(pipeline: DDPMPipeline) -> None:
    model, history = trained(pipeline, steps=2, mixed_precision="bf16")
    assert all(torch.isfinite(p).all() and p.dtype == torch.float32 for p in model.parameters())
    assert len(history) == 2


def test_distillation_mixes_both_errors() -> None:
    output, target, teacher = torch.tensor([1.0]), torch.tensor([3.0]), torch.tensor([0.0])
    assert distillation_loss(output, target, teacher, 0.7).item() == pytest.approx(0.7 * 1 + 0.3 * 4)


def test_a_perfect_student_of_its_teacher_has_nothing_to_learn(pipeline: DDPMPipeline) -> None:
    images = images_for(process_of(pipeline), "digits")
    options = FinetuneOptions(**QUICK, teacher_weight=1.0)
    _, history = train_denoiser(pipeline.unet, process_of(pipeline), images, options, teacher=pipeline.unet)
    assert history[0]["loss"] < 1e-10
    options = FinetuneOptions(**QUICK, teacher_weight=0.5)
    _, mixed = train_denoiser(pipeline.unet, process_of(pipeline), images, options, teacher=pipeline.unet)
    _, plain = trained(pipeline)
    assert mixed[0]["loss"] == pytest.approx(0.5 * plain[0]["loss"], rel=1e-5)


def test_divergence_stops_the_run(pipeline: DDPMPipeline) -> None:
    with pytest.raises(ModelError, match="training diverged"):
        trained(pipeline, steps=20, learning_rate=1e30, grad_clip=None)


def test_a_batch_that_does_not_divide_is_refused(pipeline: DDPMPipeline) -> None:
    with pytest.raises(OptionError, match="batch_size: got 8"):
        trained(pipeline, accumulation_steps=3)


def test_training_from_scratch_gives_an_ordinary_pipeline(tmp_path: Path) -> None:
    pipeline = diffprune.train("digits", architecture="ddpm-digits", steps=1, batch_size=4, num_train_timesteps=10)
    pipeline.save_pretrained(tmp_path)
    again = DDPMPipeline.from_pretrained(tmp_path)
    assert equal(again.unet.state_dict(), pipeline.unet.state_dict())
    assert type(again.unet).__module__.startswith("diffusers")
