"""Offloaded weights: on the device for each forward pass, also for passes that overlap, and dropped after the block."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from diffprune.compute.offload import offloaded_weights
from diffprune.pruning.compensation.paused_pass import PausedPass, pausing_at

CPU = torch.device("cpu")


class Scaled(nn.Module):
    """A layer, then a parameter of the module itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.full((4,), 2.0))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        self.seen.append(self.scale)
        return x * self.scale


@pytest.fixture
def model() -> Iterator[Scaled]:
    with torch.random.fork_rng():
        yield Scaled().eval()


def is_copy(tensor: Tensor) -> bool:
    return not isinstance(tensor, nn.Parameter)


def test_passes_that_overlap_have_the_weights_until_the_last_one_ends(model: Scaled) -> None:
    x = torch.ones(1, 4)
    expected = model(x)
    assert not is_copy(model.seen.pop())
    with offloaded_weights(model, CPU), pausing_at(model, ["layer"], "output"):
        passes = [PausedPass(lambda: model(x)) for _ in range(3)]
        for _ in range(2):
            for one in passes:
                one.advance()
        assert [is_copy(scale) for scale in model.seen] == [True] * 3
        assert not is_copy(model.scale)
    assert all(one.output is not None and torch.equal(one.output, expected) for one in passes)


def test_copies_are_dropped_after_the_block_though_a_pass_was_stopped(model: Scaled) -> None:
    with offloaded_weights(model, CPU), pausing_at(model, ["layer"], "output"):
        one = PausedPass(lambda: model(torch.ones(1, 4)))
        one.advance()
        assert is_copy(model.scale)
        one.stop()
    assert "scale" not in vars(model)
    assert not is_copy(model.scale)
