"""Scores of whole blocks, on a small class-conditional transformer."""

from collections.abc import Iterator

import pytest
import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel
from torch import nn

from diffprune.calibration.calibration_set import Calibration
from diffprune.criteria.bypass import bypass
from diffprune.criteria.cosine import cosine
from diffprune.groups import find_blocks
from diffprune.options import PlanOptions
from diffprune.pipelines.predict import predict
from diffprune.runs.accumulator import Accumulator

OPTIONS = PlanOptions(block_timesteps=3, batch_size=2)
SPARED = 2


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def calibration() -> Calibration:
    condition = {"class_labels": torch.tensor([1, 2, 3])}
    return Calibration(
        torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), DDPMScheduler(num_train_timesteps=20), condition
    )


@pytest.fixture
def dit() -> DiTTransformer2DModel:
    """Four blocks, of which one does nothing: both of its branches end in zeros."""
    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, num_layers=4, sample_size=8,
        patch_size=2, num_embeds_ada_norm=10,
    )  # fmt: skip
    spared = model.transformer_blocks[SPARED]
    for last in (spared.attn1.to_out[0], spared.ff.net[2]):
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return model.eval()


@pytest.mark.parametrize("criterion", [bypass, cosine])
def test_a_block_that_does_nothing_scores_nothing_and_one_that_has_to_stay_most(
    criterion: type[bypass], dit: DiTTransformer2DModel, calibration: Calibration
) -> None:
    groups = find_blocks(dit)
    values = criterion(dit, groups, calibration, OPTIONS, Accumulator()).values["transformer_blocks"]
    assert values[SPARED] == pytest.approx(0, abs=1e-6)
    assert values[0] == float("inf")
    assert (values[[1, 3]] > 1e-5).all()


def test_bypass_is_the_squared_change_of_the_output(dit: DiTTransformer2DModel, calibration: Calibration) -> None:
    options = OPTIONS.model_copy(update={"block_timesteps": 1, "batch_size": 3})
    values = bypass(dit, find_blocks(dit), calibration, options, Accumulator()).values["transformer_blocks"]
    (batch,) = calibration.batches(10, 3)
    with torch.no_grad():
        whole = predict(dit, batch.noisy, batch.timesteps, batch.condition)
        dit.transformer_blocks = nn.ModuleList([*dit.transformer_blocks][:3])
        expected = (predict(dit, batch.noisy, batch.timesteps, batch.condition) - whole).square().mean()
    assert float(values[3]) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("criterion", [bypass, cosine])
def test_scores_do_not_depend_on_the_batch_size_and_leave_the_model_as_it_was(
    criterion: type[bypass], dit: DiTTransformer2DModel, calibration: Calibration
) -> None:
    before = [*dit.transformer_blocks]
    first, second = (
        criterion(
            dit, find_blocks(dit), calibration, OPTIONS.model_copy(update={"batch_size": size}), Accumulator()
        ).values
        for size in (1, 3)
    )
    torch.testing.assert_close(first["transformer_blocks"], second["transformer_blocks"], rtol=1e-4, atol=1e-7)
    assert [*dit.transformer_blocks] == before
    assert not any(module._forward_hooks for module in dit.modules())
