"""What a training step sees is a function of the seed and the step."""

import torch

from diffprune.options import TrainingOptions
from diffprune.recovery.batches import draw, image_indices


def test_each_epoch_sees_every_image_once() -> None:
    seen = [i for step in range(7) for i in image_indices(14, 4, 0, step)]
    assert sorted(seen[:14]) == sorted(seen[14:]) == list(range(14))
    assert seen[:14] != seen[14:]


def test_a_batch_may_be_larger_than_the_data() -> None:
    assert sorted(image_indices(3, 9, 0, 0)) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_timesteps_are_antithetic() -> None:
    timesteps = draw((1, 2, 2), 1000, TrainingOptions(batch_size=8), 3).timesteps
    assert torch.equal(timesteps[:4] + timesteps[4:], torch.full((4,), 999))
    assert len(draw((1, 2, 2), 1000, TrainingOptions(batch_size=5), 3).timesteps) == 5
    assert timesteps.min() >= 0
    assert timesteps.max() < 1000


def test_steps_and_seeds_draw_differently_and_reproducibly() -> None:
    def noise(seed: int, step: int) -> torch.Tensor:
        return draw((1, 2, 2), 10, TrainingOptions(batch_size=4, seed=seed), step).noise

    assert torch.equal(noise(0, 1), noise(0, 1))
    assert not torch.equal(noise(0, 1), noise(0, 2))
    assert not torch.equal(noise(0, 1), noise(1, 1))


def test_mirroring_can_be_switched_off() -> None:
    assert draw((1, 2, 2), 10, TrainingOptions(batch_size=64), 0).mirrored.any()
    assert not draw((1, 2, 2), 10, TrainingOptions(batch_size=64, flip=False), 0).mirrored.any()
