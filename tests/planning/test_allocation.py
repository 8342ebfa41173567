"""How many units of each group go, and which."""

import pytest
import torch

from diffprune.criteria import Scores
from diffprune.errors import OptionError
from diffprune.groups import Group, Slice
from diffprune.options import BudgetOptions
from diffprune.planning import allocate, check_patterns


def kept(num_units: int, balance: int, ratio: float, scores: list[float] | None = None) -> tuple[int, ...]:
    group = Group("g", "channels", num_units, (), balance)
    values = torch.tensor(scores or list(range(num_units)), dtype=torch.float64)
    return allocate([group], Scores("by hand", {"g": values}), BudgetOptions(ratio=ratio))["g"]


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


def blocks(num_units: int, least: int, **options: object) -> tuple[int, ...]:
    group = Group("g", "blocks", num_units, (), least=least)
    return allocate([group], Scores("", {"g": torch.arange(num_units).double()}), BudgetOptions(**options))["g"]


def test_blocks_that_have_to_stay_stay_whatever_the_ratio() -> None:
    assert blocks(4, 3, ratio=0.9) == (1, 2, 3)
    assert blocks(4, 1, ratio=0.9) == (3,)


def test_blocks_that_may_all_go_do_so_by_the_nearest_number() -> None:
    assert [blocks(1, 0, ratio=ratio) for ratio in (0.3, 0.7)] == [(0,), ()]
    assert [len(blocks(10, 0, ratio=ratio)) for ratio in (0.12, 0.3, 0.96)] == [9, 7, 0]
    assert blocks(10, 0, ratio=0.96, min_units=2) == (8, 9)


def test_equal_scores_are_broken_by_index() -> None:
    assert kept(4, 1, 0.5, [1.0, 1.0, 1.0, 1.0]) == (2, 3)


def two_groups(first: list[float], second: list[float], **options: object) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What stays of two groups, `down.0.conv` and `down.1.conv`."""
    scores = {"down.0.conv": first, "down.1.conv": second}
    groups = [Group(n, "channels", len(s), (Slice(n, "out", 0, 1),)) for n, s in scores.items()]
    values = {n: torch.tensor(s, dtype=torch.float64) for n, s in scores.items()}
    kept = allocate(groups, Scores("by hand", values), BudgetOptions.model_validate(options))
    return kept["down.0.conv"], kept["down.1.conv"]


LOW, HIGH = [1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]


def test_locally_every_group_loses_its_share() -> None:
    assert two_groups(LOW, HIGH, ratio=0.5) == ((2, 3), (2, 3))


def test_globally_the_lowest_of_all_go_and_one_unit_of_each_group_stays() -> None:
    assert two_groups(LOW, HIGH, ratio=0.5, ranking="global") == ((3,), (1, 2, 3))


def test_a_share_and_a_number_bound_what_a_group_may_lose() -> None:
    assert two_groups(LOW, HIGH, ratio=0.5, ranking="global", max_ratio=0.5) == ((2, 3), (2, 3))
    assert two_groups(LOW, HIGH, ratio=0.5, ranking="global", min_units=3) == ((1, 2, 3), (1, 2, 3))
    assert two_groups(LOW, HIGH, ratio=0.75, min_units=2) == ((2, 3), (2, 3))


def test_isomorphic_groups_compete_and_others_do_not() -> None:
    assert two_groups(LOW, HIGH, ratio=0.5, ranking="isomorphic") == ((3,), (1, 2, 3))
    assert two_groups(LOW, HIGH[:2], ratio=0.5, ranking="isomorphic") == ((2, 3), (1,))


def test_kinds_do_not_compete() -> None:
    groups = [Group("a", "channels", 4, ()), Group("b", "heads", 4, ())]
    values = {"a": torch.tensor(LOW), "b": torch.tensor(HIGH)}
    kept = allocate(groups, Scores("by hand", values), BudgetOptions(ratio=0.5, ranking="global"))
    assert kept == {"a": (2, 3), "b": (2, 3)}


def test_norm_groups_stay_balanced_in_a_global_ranking() -> None:
    groups = [Group("a", "channels", 8, (), balance=2), Group("b", "channels", 4, ())]
    values = {"a": torch.tensor([9.0, 1.0, 8.0, 2.0, 4.0, 5.0, 6.0, 7.0]), "b": torch.tensor([3.5, 9.0, 9.0, 3.6])}
    kept = allocate(groups, Scores("by hand", values), BudgetOptions(ratio=0.5, ranking="global"))
    assert kept == {"a": (0, 2, 6, 7), "b": (1, 2)}


def test_the_last_pattern_that_matches_a_layer_sets_its_ratio() -> None:
    assert two_groups(LOW, HIGH, ratio={"*": 0.5, "down.1.*": 0.25}) == ((2, 3), (1, 2, 3))
    assert two_groups(LOW, HIGH, ratio=["0.5", "down.1.*=0"]) == ((2, 3), (0, 1, 2, 3))
    assert two_groups(LOW, HIGH, ratio=["down.1.*=0", "*=0.5"]) == ((2, 3), (2, 3))


def test_ignored_layers_lose_nothing() -> None:
    assert two_groups(LOW, HIGH, ratio=0.5, ignore=("down.0.conv",)) == ((0, 1, 2, 3), (2, 3))


def test_patterns_that_match_nothing_and_kinds_that_are_not_there_are_told_together() -> None:
    groups = [Group("down.0.conv", "channels", 4, (Slice("down.0.conv", "out", 0, 1),))]
    options = BudgetOptions(ratio={"dwon.*": 0.1}, ignore=("up.*", "down.*"), kinds=("heads", "channels"))
    with pytest.raises(OptionError) as refusal:
        check_patterns(groups, options)
    assert str(refusal.value).count("\n") == 3
    assert "'dwon.*' matches no prunable layer" in str(refusal.value)


@pytest.mark.parametrize("ratio", [0, 1, "x", True, None, {"a": 1}, ["a=x"], []])
def test_a_ratio_that_is_no_share_is_refused(ratio: object) -> None:
    with pytest.raises(ValueError, match="expected a number between 0 and 1"):
        BudgetOptions.model_validate({"ratio": ratio})
