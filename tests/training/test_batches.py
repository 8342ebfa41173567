"""What a training step sees is a function of the seed and the step."""

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from diffprune.options import TrainingOptions
from diffprune.training.draws import draw, image_indices, sampling_of

NOISES = DDPMScheduler(num_train_timesteps=1000)
FLOW = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)


def test_each_epoch_sees_every_image_once() -> None:
    seen = [i for step in range(7) for i in image_indices(14, 4, 0, step)]
    assert sorted(seen[:14]) == sorted(seen[14:]) == list(range(14))
    assert seen[:14] != seen[14:]


def test_a_batch_may_be_larger_than_the_data() -> None:
    assert sorted(image_indices(3, 9, 0, 0)) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_timesteps_are_antithetic() -> None:
    timesteps = draw((1, 2, 2), NOISES, TrainingOptions(batch_size=8), 3).timesteps
    assert torch.equal(timesteps[:4] + timesteps[4:], torch.full((4,), 999))
    assert len(draw((1, 2, 2), NOISES, TrainingOptions(batch_size=5), 3).timesteps) == 5
    assert timesteps.min() >= 0
    assert timesteps.max() < 1000


def test_steps_and_seeds_draw_differently_and_reproducibly() -> None:
    def noise(seed: int, step: int) -> torch.Tensor:
        return draw((1, 2, 2), NOISES, TrainingOptions(batch_size=4, seed=seed), step).noise

    assert torch.equal(noise(0, 1), noise(0, 1))
    assert not torch.equal(noise(0, 1), noise(0, 2))
    assert not torch.equal(noise(0, 1), noise(1, 1))


def test_mirroring_can_be_switched_off() -> None:
    assert draw((1, 2, 2), NOISES, TrainingOptions(batch_size=64), 0).mirrored.any()
    assert not draw((1, 2, 2), NOISES, TrainingOptions(batch_size=64, flip=False), 0).mirrored.any()


def test_flows_draw_logit_normal_timesteps_and_others_uniform_ones() -> None:
    options = TrainingOptions(batch_size=20_001)
    assert (sampling_of(NOISES, options), sampling_of(FLOW, options)) == ("uniform", "logit-normal")
    levels = (draw((1,), FLOW, options, 0).timesteps.double() + 0.5) / 1000
    normal = levels.logit()
    assert float(normal.mean()) == pytest.approx(0, abs=0.01)
    assert float(normal.std()) == pytest.approx(1, abs=0.02)
    within = float((normal.abs() < 1).double().mean())
    assert within == pytest.approx(0.6827, abs=0.015)
    assert sampling_of(FLOW, TrainingOptions(timestep_sampling="uniform")) == "uniform"
    chosen = TrainingOptions(batch_size=8, timestep_sampling="logit-normal")
    assert torch.equal(draw((1,), FLOW, chosen, 5).timesteps, draw((1,), NOISES, chosen, 5).timesteps)


@pytest.mark.parametrize("shift", [0.5, 3.0])
def test_timesteps_of_flows_move_as_the_noise_levels_of_their_scheduler(shift: float) -> None:
    """The scheduler's own table says which level takes the place of which."""
    moved = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
    options = TrainingOptions(batch_size=64)
    plain, shifted = (draw((1,), scheduler, options, 2).timesteps for scheduler in (FLOW, moved))
    table = moved.sigmas.flip(0) * 1000  # of levels 1 / T to 1
    expected = (table[plain] + table[(plain - 1).clamp(min=0)]) / 2
    assert float((shifted + 0.5 - expected).abs().max()) <= 2.5
    assert not torch.equal(plain, shifted)
    dynamic = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift, use_dynamic_shifting=True)
    assert torch.equal(draw((1,), dynamic, options, 2).timesteps, plain)


def test_no_timestep_lies_outside_the_schedule() -> None:
    short = FlowMatchEulerDiscreteScheduler(num_train_timesteps=3, shift=1000.0)
    timesteps = draw((1,), short, TrainingOptions(batch_size=4096), 0).timesteps
    assert int(timesteps.min()) >= 0
    assert int(timesteps.max()) == 2
