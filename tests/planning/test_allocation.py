"""The published uniform rule."""

import pytest
import torch

from diffprune.criteria import Scores
from diffprune.groups import Group
from diffprune.planning import allocate_uniform


def kept(num_units: int, balance: int, ratio: float, scores: list[float] | None = None) -> tuple[int, ...]:
    group = Group("g", "channels", num_units, (), balance)
    values = torch.tensor(scores or list(range(num_units)), dtype=torch.float64)
    return allocate_uniform([group], Scores("by hand", {"g": values}), ratio)["g"]


def test_the_lowest_scores_go() -> None:
    assert kept(4, 1, 0.5, [3.0, 1.0, 4.0, 2.0]) == (0, 2)


def test_the_count_is_c_minus_the_floor_of_what_stays() -> None:
    assert len(kept(256, 1, 0.3)) == 179


def test_each_norm_group_loses_the_same_number() -> None:
    assert kept(8, 2, 0.5, [0.0, 1.0, 2.0, 3.0, 9.0, 8.0, 7.0, 6.0]) == (2, 3, 4, 5)
    assert len(kept(256, 32, 0.3)) == 192
    assert len(kept(128, 32, 0.3)) == 96


def test_binary_rounding_does_not_cost_a_unit() -> None:
    assert len(kept(100, 1, 0.9)) == 10


@pytest.mark.parametrize("balance", [1, 4])
def test_at_least_one_unit_stays_in_each_part(balance: int) -> None:
    assert len(kept(8, balance, 0.999)) == balance


def test_equal_scores_are_broken_by_index() -> None:
    assert kept(4, 1, 0.5, [1.0, 1.0, 1.0, 1.0]) == (2, 3)
