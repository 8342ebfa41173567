"""Compensation lowers the output error of every denoiser class, without code for its family."""

import inspect

import pytest
import torch
from torch import Tensor, nn

from diffprune.architectures.example_inputs import derived_inputs as inputs
from diffprune.artifact.slicing import shrink
from diffprune.calibration.calibration_set import NoisyBatch
from diffprune.groups import find_groups, kept_indices
from diffprune.pruning.compensation.layerwise import fit_layers
from diffprune.pruning.compensation.noised_images import WeightedBatch
from tests.zoo.tiny_configs import CONFIGS
from tests.zoo.zoo import SMALL_INPUTS, ragged, random_inputs, tiny_model

pytestmark = [  # warnings of diffusers
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning"),
    pytest.mark.filterwarnings("ignore:flex_attention called without:UserWarning"),
]

SOME = ("UNet2DModel", "UNet2DConditionModel", "SD3Transformer2DModel", "FluxTransformer2DModel",
        "WanTransformer3DModel", "SanaTransformer2DModel")  # fmt: skip


def takes_noisy_and_timestep(model: nn.Module) -> bool:
    """Whether `forward` takes one noisy tensor first, and `timestep`, as calibration does."""
    inputs_by_name = random_inputs(model)
    first = list(inspect.signature(type(model).forward).parameters)[1]
    return "timestep" in inputs_by_name and isinstance(inputs_by_name.get(first), Tensor)


def batch(model: nn.Module, number: int) -> WeightedBatch:
    inputs_by_name = random_inputs(model, num=8, seed=number)
    first = list(inspect.signature(type(model).forward).parameters)[1]
    noisy: Tensor = inputs_by_name.pop(first)
    images = NoisyBatch(noisy, inputs_by_name.pop("timestep"), inputs_by_name, noisy)
    return WeightedBatch(images, torch.ones(8, dtype=torch.float64), held_out=number >= 4)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in SOME else pytest.mark.slow) for n in CONFIGS])
def test_compensation_lowers_the_output_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for setting, size in SMALL_INPUTS.items():
        monkeypatch.setattr(inputs, setting, size)
    dense = tiny_model(name)
    if not takes_noisy_and_timestep(dense):
        pytest.skip("forward does not take one noisy tensor and a timestep, so calibration is not supported")
    groups = find_groups(dense)
    kept = kept_indices(groups, ragged(groups), dense)
    small = shrink(dense, kept).eval()
    paths = {path: path for path, _ in dense.named_modules()}
    result = fit_layers(dense, small, kept.rows, paths, [batch(dense, number) for number in range(5)], seed=0)
    assert all(fit.fitted[1] <= fit.fitted[0] and fit.held_out[1] <= fit.held_out[0] for fit in result.layers)
    assert result.output_error[1] < 0.95 * result.output_error[0]
