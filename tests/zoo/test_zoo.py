"""Every denoiser class of diffusers that is covered: the smaller model equals the masked dense one, and reloads."""

from pathlib import Path

import pytest
import torch

import diffprune
from diffprune.groups import kept_indices
from diffprune.models import inputs
from diffprune.models.resize import shrink

from tiny_configs import CONFIGS
from zoo import by_rule, largest_difference, masked, outputs_of, ragged, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # diffusers' own, while it builds some classes


@pytest.fixture(autouse=True)
def _small_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in {"SIDE": 8, "FRAMES": 3, "TEXT_TOKENS": 7}.items():
        monkeypatch.setattr(inputs, name, size)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_smaller_model_equals_the_masked_dense_one(name: str) -> None:
    model = tiny_model(name)
    groups = by_rule(model)
    kept = ragged(groups)
    small = shrink(model, kept_indices(groups, kept, model))
    ours = outputs_of(small)
    assert largest_difference(ours, outputs_of(masked(model, small, groups, kept))) < 1e-5
    assert largest_difference(ours, outputs_of(model)) > 1e-3


@pytest.mark.parametrize("name", CONFIGS)
def test_a_pruned_model_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    small = diffprune.prune(model, diffprune.plan(model, criterion="magnitude", ratio=0.3))
    assert small.num_parameters() < 0.85 * model.num_parameters()
    small.save_pretrained(tmp_path)
    again = getattr(diffprune, name).from_pretrained(tmp_path)
    assert again.pruning == small.pruning
    for ours, theirs in zip(outputs_of(small), outputs_of(again), strict=True):
        assert torch.equal(ours, theirs)
