"""Grids and steps against figures worked out by hand."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor, nn

from diffprune.errors import OptionError
from diffprune.options import SampleOptions
from diffprune.pipelines.diffusion import DiffusionProcess
from diffprune.sampling.denoising_steps import ddim_step, ddpm_step, split_prediction
from diffprune.sampling.sampler import draw_images, image_generator
from diffprune.sampling.timestep_grids import timestep_grid

CPU = torch.device("cpu")


def test_the_uniform_grid_strides_evenly_from_zero() -> None:
    assert timestep_grid("uniform", 4, 20) == [15, 10, 5, 0]
    assert timestep_grid("uniform", 100, 1000)[:2] == [990, 980]


def test_the_quad_grid_is_squares_without_repeats() -> None:
    assert timestep_grid("quad", 5, 20) == [16, 9, 4, 1, 0]
    assert len(timestep_grid("quad", 100, 1000)) == 96


def test_more_steps_than_timesteps_are_refused() -> None:
    with pytest.raises(OptionError, match="the model has 20 timesteps"):
        timestep_grid("uniform", 21, 20)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_every_prediction_type_splits_into_the_same_image_and_noise(kind: str) -> None:
    x_0, eps, a = torch.tensor([0.5]), torch.tensor([-1.25]), torch.tensor(0.36)
    x_t = 0.6 * x_0 + 0.8 * eps
    output = {"epsilon": eps, "v_prediction": 0.6 * eps - 0.8 * x_0, "sample": x_0}[kind]
    found = split_prediction(kind, output, x_t, a)
    assert torch.allclose(found[0], x_0)
    assert torch.allclose(found[1], eps)


def test_a_ddim_step_with_the_true_noise_lands_on_the_same_trajectory() -> None:
    x_0, eps = torch.tensor([0.5]), torch.tensor([-1.25])
    a_t, a_next = torch.tensor(0.36), torch.tensor(0.64)
    assert torch.allclose(ddim_step(x_0, eps, a_t, a_next, 0.0, None), 0.8 * x_0 + 0.6 * eps)
    assert torch.allclose(ddim_step(x_0, eps, a_t, torch.tensor(1.0), 0.0, None), x_0)


def test_the_variance_of_a_ddim_step_is_that_of_the_paper() -> None:
    a_t, a_next, eta = 0.36, 0.64, 0.5
    sigma = eta * math.sqrt((1 - a_next) / (1 - a_t)) * math.sqrt(1 - a_t / a_next)
    zero, one = torch.zeros(1), torch.ones(1)
    step = ddim_step(zero, zero, torch.tensor(a_t), torch.tensor(a_next), eta, one)
    assert step.item() == pytest.approx(sigma)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_steps_of_one_timestep_equal_diffusers_schedulers(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x_t, output = torch.randn(2, 3, 1, 4, 4, generator=generator)
    ddim = DDIMScheduler(num_train_timesteps=20, prediction_type=kind, clip_sample=False, set_alpha_to_one=True)
    ddim.set_timesteps(20)
    a = ddim.alphas_cumprod
    x_0, eps = split_prediction(kind, output, x_t, a[7])
    expected = ddim.step(output, 7, x_t).prev_sample
    assert torch.allclose(ddim_step(x_0, eps, a[7], a[6], 0.0, None), expected, atol=1e-5)
    ddpm = DDPMScheduler(num_train_timesteps=20, prediction_type=kind, clip_sample=True, variance_type="fixed_large")
    noise = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(1))
    expected = ddpm.step(output, 7, x_t, generator=torch.Generator().manual_seed(1)).prev_sample
    assert torch.allclose(ddpm_step(x_0, x_t, a[7], a[6], noise), expected, atol=1e-5)


class Recorder(nn.Module):
    """Predicts a constant noise and notes the timesteps it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.tensor(0.25))
        self.config = SimpleNamespace(sample_size=2, in_channels=1)
        self.asked: list[int] = []

    def forward(self, noisy: Tensor, timestep: Tensor, return_dict: bool) -> tuple[Tensor]:
        self.asked.append(int(timestep[0]))
        return (torch.full_like(noisy, float(self.constant)),)


def test_each_step_goes_to_the_next_lower_member_of_the_same_grid() -> None:
    model, scheduler = Recorder(), DDPMScheduler(num_train_timesteps=20)
    process = DiffusionProcess(scheduler, (1, 2, 2), (1, 2, 2))
    drawn = draw_images(model, process, [3], SampleOptions(steps=5, grid="quad"), CPU)
    a = [float(scheduler.alphas_cumprod[t]) for t in (16, 9, 4, 1, 0)] + [1.0]
    x = torch.randn((1, 2, 2), generator=image_generator(0, 3))
    for here, following in itertools.pairwise(a):
        x = math.sqrt(following) * (x - math.sqrt(1 - here) * 0.25) / math.sqrt(here) + math.sqrt(1 - following) * 0.25
    expected = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    assert model.asked == [16, 9, 4, 1, 0]
    assert torch.equal(drawn[0], expected)
