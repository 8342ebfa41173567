"""What a student learns from: its teacher's output and features, and what timesteps count."""

import copy
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

import diffprune
from diffprune.calibration.calibration_set import images_for, noisy_batch
from diffprune.cli.main import main
from diffprune.errors import ModelError
from diffprune.options import FinetuneOptions
from diffprune.pipelines.diffusion import min_snr_weights, num_timesteps_of, process_of
from diffprune.pipelines.predict import predict
from diffprune.training.feature_distillation import matched_blocks
from diffprune.training.losses import denoising_loss, feature_loss
from diffprune.training.trainer import train_denoiser
from tests.conftest import tiny_pipeline, tiny_unet

QUICK = {"data": "digits", "steps": 2, "batch_size": 8, "log_every": 1, "learning_rate": 1e-4}


@pytest.fixture(scope="module")
def pruned() -> DDPMPipeline:
    pipeline = tiny_pipeline()
    plan = diffprune.plan(pipeline, criterion="magnitude", ratio=0.25)
    return diffprune.prune(pipeline, plan, data="digits", num_compensation_images=64)


def first_loss(student: DDPMPipeline, teacher: DDPMPipeline | None, **options: object) -> float:
    process = process_of(student)
    _, history = train_denoiser(
        student.unet, process, images_for(process, "digits"), FinetuneOptions(**{**QUICK, **options}),
        teacher=None if teacher is None else teacher.unet,
    )  # fmt: skip
    return history[0]["loss"]


def correlation(ours: Tensor, theirs: Tensor) -> float:
    """Of each channel over images and positions, then the mean."""
    a, b = (x.movedim(1, 0).flatten(1) for x in (ours, theirs))
    a, b = (x - x.mean(1, keepdim=True) for x in (a, b))
    return float(((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-9)).mean())


@torch.no_grad()
def test_channels_of_features_are_matched_by_what_was_kept(pruned: DDPMPipeline) -> None:
    student, teacher = pruned.unet, tiny_unet()
    matched = matched_blocks(student, teacher)
    assert {"down_blocks.0", "down_blocks.1", "up_blocks.0", "up_blocks.1", "mid_block.resnets.1"} <= {
        *matched.channels
    }
    images = torch.stack([images_for(process_of(pruned), "digits")[i] for i in range(16)])
    times = torch.arange(16)
    with matched.recorded(student) as ours:
        predict(student, images, times, {})
    with matched.recorded(teacher) as all_theirs:
        predict(teacher, images, times, {})
    theirs = matched.of_teacher(all_theirs)
    assert [x.shape for x in ours] == [x.shape for x in theirs]
    for mine, its, path in zip(ours, theirs, matched.channels, strict=True):
        assert correlation(mine, its) > 0.8, path
        assert correlation(mine, its.roll(1, 1)) < 0.5, path
    assert feature_loss(ours, theirs) < 0.5


def test_a_manifest_that_is_loaded_still_tells_what_was_kept(pruned: DDPMPipeline, tmp_path: Path) -> None:
    pruned.save_pretrained(tmp_path)
    again = diffprune.load_pipeline(str(tmp_path))
    expected, found = (matched_blocks(model.unet, tiny_unet()).channels for model in (pruned, again))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[path], rows) for path, rows in expected.items() if rows is not None)


def test_a_student_that_is_its_teacher_has_no_features_to_learn(pipeline: DDPMPipeline) -> None:
    assert first_loss(pipeline, pipeline, teacher_weight=1, feature_weight=1) < 1e-9


def test_features_add_to_the_loss(pruned: DDPMPipeline) -> None:
    plain = first_loss(pruned, tiny_pipeline(), teacher_weight=1)
    assert first_loss(pruned, tiny_pipeline(), teacher_weight=1, feature_weight=0.5) > 1.1 * plain


def test_blocks_count_alike_however_large_their_activations_are() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(2, 3, 4, 5, 6, 6, generator=generator)
    scaled = [x * s for x, s in zip(theirs, (1, 100, 0.01), strict=True)]
    students = [x * s for x, s in zip(ours, (1, 100, 0.01), strict=True)]
    torch.testing.assert_close(feature_loss(list(ours), list(theirs)), feature_loss(students, scaled))


def test_a_student_without_matching_blocks_is_refused() -> None:
    student = tiny_pipeline(block_out_channels=(8, 16))
    with pytest.raises(ModelError, match="feature_weight"):
        matched_blocks(student.unet, tiny_unet())


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow"])
def test_min_snr_weights_are_those_of_an_error_in_x_0(kind: str) -> None:
    flow = FlowMatchEulerDiscreteScheduler()
    scheduler = flow if kind == "flow" else DDPMScheduler(prediction_type=kind)
    timesteps = torch.arange(5, 1000, 90)
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, len(timesteps), 1, 2, 2, generator=generator, dtype=torch.float64)
    batch = noisy_batch(scheduler, clean, noise, timesteps, {})
    wrong = batch.target + torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    signal, amount = share_of(scheduler, timesteps)
    implied = {
        "epsilon": lambda y: (batch.noisy - amount * y) / signal,
        "v_prediction": lambda y: signal * batch.noisy - amount * y,
        "sample": lambda y: y,
        "flow": lambda y: batch.noisy - amount * y,
    }[kind]
    limited = (signal / amount).square().clamp(max=5)
    expected = limited * (implied(wrong) - clean).square()
    ours = min_snr_weights(scheduler, timesteps).view(-1, 1, 1, 1) * (wrong - batch.target).square()
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-9)


def share_of(scheduler: object, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """What x_0 and the noise are multiplied with."""
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        share = ((timesteps.double() + 1) / num_timesteps_of(scheduler)).view(-1, 1, 1, 1)
        return 1 - share, share
    alpha_bar = scheduler.alphas_cumprod.double()[timesteps].view(-1, 1, 1, 1)
    return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


def test_weights_of_one_leave_the_loss_as_it_is() -> None:
    generator = torch.Generator().manual_seed(0)
    output, target = torch.randn(2, 4, 1, 3, 3, generator=generator)
    torch.testing.assert_close(denoising_loss(output, target, torch.ones(4)), denoising_loss(output, target))


def test_a_teacher_in_bf16_teaches_about_the_same(pruned: DDPMPipeline) -> None:
    teacher = tiny_pipeline()
    before = copy.deepcopy(teacher.unet.state_dict())
    losses = [first_loss(pruned, teacher, teacher_weight=1, teacher_dtype=dtype) for dtype in ("fp32", "bf16")]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert all(torch.equal(value, before[name]) for name, value in teacher.unet.state_dict().items())


def test_min_snr_is_trained_with(pruned: DDPMPipeline) -> None:
    assert first_loss(pruned, None, loss_weighting="min-snr") < 0.9 * first_loss(pruned, None)


def test_options_of_a_teacher_need_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["finetune", "digits", "--data", "digits", "--feature-weight", "0.1", "--teacher-dtype", "bf16"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "--feature-weight, --teacher-dtype: needs a teacher" in capsys.readouterr().err
