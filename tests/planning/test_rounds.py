"""Pruning in rounds, and options of the budget from the command line."""

import json
from itertools import pairwise

import pytest
from diffusers import UNet2DModel

import diffprune
from diffprune.cli.main import main


def test_rounds_end_at_the_sizes_of_one_step(unet: UNet2DModel) -> None:
    at_once = diffprune.plan(unet, criterion="magnitude", ratio=0.5)
    in_rounds = diffprune.plan(unet, criterion="magnitude", ratio=0.5, rounds=3)
    assert in_rounds.after == at_once.after
    assert {n: len(g.kept) for n, g in in_rounds.groups.items()} == {n: len(g.kept) for n, g in at_once.groups.items()}


def test_a_later_round_sees_what_the_earlier_ones_left(unet: UNet2DModel) -> None:
    """Random scores depend on how many units there are: with fewer left, others are drawn for them."""
    at_once = diffprune.plan(unet, criterion="random", ratio=0.5)
    in_rounds = diffprune.plan(unet, criterion="random", ratio=0.5, rounds=2)
    halfway = diffprune.plan(unet, criterion="random", ratio=0.25)
    assert in_rounds.groups != at_once.groups
    assert all(set(in_rounds.groups[n].kept) <= set(g.kept) for n, g in halfway.groups.items())


def test_the_ratio_of_some_layers_is_given_by_pattern(capsys: pytest.CaptureFixture[str]) -> None:
    def params(*words: str) -> int:
        assert main(["plan", "ddpm-digits", "--json", "--ratio", *words]) == 0
        return int(json.loads(capsys.readouterr().out)["params_after"])

    assert params("0.5") < params("0.5", "up_blocks.*=0.1") < params("0.1", "up_blocks.*=0.1") == params("0.1")


@pytest.mark.parametrize("budget", ["params", "macs"])
@pytest.mark.parametrize("ranking", ["local", "global"])
def test_a_budget_is_met_from_below(budget: str, ranking: str, unet: UNet2DModel) -> None:
    plan = diffprune.plan(unet, criterion="magnitude", ranking=ranking, **{f"keep_{budget}": 0.6})
    share = getattr(plan.after, budget) / getattr(plan.before, budget)
    assert 0.55 < share <= 0.6


def test_rounds_reach_a_budget_too(unet: UNet2DModel) -> None:
    plan = diffprune.plan(unet, criterion="magnitude", keep_params=0.6, rounds=2, ranking="global")
    assert 0.5 < plan.after.params / plan.before.params <= 0.6


def test_what_a_round_removed_stays_gone_under_a_budget(
    unet: UNet2DModel, kept_by_round: list[dict[str, tuple[int, ...]]]
) -> None:
    diffprune.plan(unet, criterion="magnitude", keep_params=0.5, rounds=6)
    assert len(kept_by_round) == 6
    for before, after in pairwise(kept_by_round):
        assert all({*after[name]} <= {*before[name]} for name in after)


def test_a_budget_needs_ratios_to_scale(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "ddpm-digits", "--ratio", "*=0", "--keep-macs", "0.5"]) == 2
    assert "every ratio is 0" in capsys.readouterr().err


def test_a_budget_that_cannot_be_met_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "ddpm-digits", "--keep-macs", "0.1", "--ignore", "up_blocks.*"]) == 2
    assert "the budget cannot be met" in capsys.readouterr().err


def test_a_pattern_that_matches_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "ddpm-digits", "--ratio", "0.5", "upblocks.*=0.1", "--kinds", "neurons"]) == 2
    message = capsys.readouterr().err
    assert "'upblocks.*' matches no prunable layer" in message
    assert "the model has no neurons" in message
