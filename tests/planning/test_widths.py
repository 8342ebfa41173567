"""Widths in multiples of a number: of groups made by hand, of models, under budgets, in rounds, by device."""

import json
import random
from itertools import pairwise
from math import lcm
from pathlib import Path

import pytest
import torch
from diffusers import DiTTransformer2DModel

import diffprune
from diffprune.cli.main import main
from diffprune.compute import autocast
from diffprune.criteria import Scores
from diffprune.errors import OptionError
from diffprune.groups import Group, Slice
from diffprune.options import BudgetOptions, PlanOptions
from diffprune.planning import allocate, check_patterns, resolve_auto
from diffprune.planning import widths as rounding
from diffprune.planning.rounds import REMOVED
from diffprune.runs.atomic_files import read_json
from tests.conftest import tiny_pipeline, tiny_unet


def kept(group: Group, scores: torch.Tensor | None = None, **options: object) -> tuple[int, ...]:
    values = torch.arange(group.num_units).double() if scores is None else scores
    return allocate([group], Scores("by hand", {group.name: values}), BudgetOptions.model_validate(options))[group.name]


def channels(num_units: int, balance: int = 1, *widths: int) -> Group:
    return Group("g", "channels", num_units, tuple(Slice("g", "out", 0, width) for width in widths), balance)


def parts_of(units: tuple[int, ...], group: Group) -> set[int]:
    size = group.num_units // group.balance
    return {sum(unit // size == part for unit in units) for part in range(group.balance)}


def test_a_group_keeps_the_nearest_multiple_and_of_two_the_larger() -> None:
    counts = {ratio: len(kept(channels(64), ratio=ratio, round_to=16)) for ratio in (0.05, 0.3, 0.375, 0.4, 0.9)}
    assert counts == {0.05: 64, 0.3: 48, 0.375: 48, 0.4: 32, 0.9: 16}
    assert kept(channels(4), torch.tensor([3.0, 1.0, 4.0, 2.0]), ratio=0.6, round_to=2) == (0, 2)


def test_of_any_group_the_widths_are_multiples_or_its_own_and_parts_stay_equal() -> None:
    draw = random.Random(0)
    for _ in range(300):
        balance = draw.choice([1, 1, 2, 3, 8, 32])
        group = channels(balance * draw.randint(2, 12), balance)
        width, ratio = draw.choice([1, 2, 8, 12, 16, 64]), draw.uniform(0.02, 0.98)
        least, most = draw.randint(1, group.num_units), draw.uniform(ratio, 1)
        bounds = {"ratio": ratio, "min_units": least, "max_ratio": most}
        rounded, plain = (kept(group, **bounds, round_to=n) for n in (width, None))
        step, told = lcm(width, balance), (group, width, bounds)
        assert len(rounded) == group.num_units or len(rounded) % step == 0, told
        assert len(parts_of(rounded, group)) == 1, told
        assert len(rounded) >= least, told
        assert group.num_units - len(rounded) <= group.num_units * most + 1e-6, told
        near = [n for n in (len(plain) // step * step, -(-len(plain) // step) * step) if least <= n <= group.num_units]
        assert all(abs(len(rounded) - len(plain)) <= abs(n - len(plain)) or n < group.num_units * (1 - most)
                   for n in near), told  # fmt: skip
        if width == 1:
            assert rounded == plain, told


def test_what_has_no_multiple_stays_whole() -> None:
    assert len(kept(channels(12), ratio=0.5, round_to=16)) == 12
    assert len(kept(channels(96, 32), ratio=0.4, round_to=64)) == 64
    assert len(kept(channels(32, 32), ratio=0.4, round_to=64)) == 32


def test_rows_are_counted_where_a_unit_is_several() -> None:
    assert len(kept(channels(64, 1, 4), ratio=0.3, round_to=16)) == 44
    assert len(kept(channels(64, 1, 4, 1), ratio=0.3, round_to=16)) == 48
    assert len(kept(channels(63, 3, 16), ratio=0.3, round_to=16)) == 45


def test_heads_and_blocks_are_left_as_they_are() -> None:
    for group in (Group("g", "heads", 12, (Slice("g", "out", 0, 7),)), Group("g", "blocks", 12, (), least=0)):
        assert len(kept(group, ratio=0.3, round_to=8)) == len(kept(group, ratio=0.3)) < 12


@pytest.mark.parametrize("ranking", ["global", "isomorphic"])
def test_groups_that_compete_are_rounded_too(ranking: str) -> None:
    groups = [Group(f"g.{i}", "neurons", 32, (Slice(f"g.{i}", "out", 0, 1),)) for i in range(2)]
    scores = {"g.0": torch.arange(32).double(), "g.1": torch.arange(32).double() + 10}
    plain = BudgetOptions(ratio={"*": 0.4}, ranking=ranking)
    found = allocate(groups, Scores("", scores), plain.model_copy(update={"round_to": 8}))
    ragged = allocate(groups, Scores("", scores), plain)
    assert [len(units) for units in ragged.values()] == [14, 25]
    assert [len(units) for units in found.values()] == [16, 24]


def test_units_that_are_gone_are_not_taken_back() -> None:
    """Rounding took more than the ratio in one round; in the next, others are at the end of the ranking."""
    groups = [Group(n, "channels", 64, ()) for n in ("a", "b")]
    left = torch.arange(64).double().index_fill(0, torch.arange(32), REMOVED)
    options = BudgetOptions(ratio=0.3, ranking="global", round_to=32)
    assert allocate(groups, Scores("", {"a": left, "b": left}), options) == {n: tuple(range(32, 64)) for n in "ab"}


def dit() -> DiTTransformer2DModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DiTTransformer2DModel(num_attention_heads=4, attention_head_dim=8, num_layers=2, sample_size=8).eval()


def widths(plan: diffprune.Plan, kinds: tuple[str, ...] = ("channels", "neurons")) -> dict[str, tuple[int, int]]:
    return {name: (len(g.kept), g.num_units) for name, g in plan.groups.items() if g.kind in kinds}


def check_widths(plan: diffprune.Plan, number: int) -> None:
    assert {left for left, _ in widths(plan).values()} - {whole for _, whole in widths(plan).values()}
    assert all(left % number == 0 or left == whole for left, whole in widths(plan).values())


@pytest.mark.parametrize(
    ("budget", "ranking"),
    [("macs", "local"), ("params", "local"), ("params", "global"), ("params", "isomorphic")],
)
def test_a_budget_holds_with_rounded_widths(budget: str, ranking: str) -> None:
    unet = tiny_unet(block_out_channels=(32, 64), norm_num_groups=8)
    plan = diffprune.plan(unet, criterion="magnitude", ranking=ranking, round_to=16, **{f"keep_{budget}": 0.6})
    check_widths(plan, 16)
    assert 0.4 < getattr(plan.after, budget) / getattr(plan.before, budget) <= 0.6


def test_a_budget_on_the_clock_sees_rounded_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that counts parameters."""
    counted = lambda model, *, batch_size: sum(p.numel() for p in model.parameters())  # noqa: E731
    monkeypatch.setattr("diffprune.planning.latency.latency_ms", counted)
    plan = diffprune.plan(dit(), criterion="magnitude", keep_latency=0.9, round_to=16)
    check_widths(plan, 16)
    assert 0.86 < plan.after.params / plan.before.params <= 0.9


def test_ratios_by_layer_are_rounded_and_ignored_layers_and_heads_stay() -> None:
    ratio = {"*": 0.5, "transformer_blocks.1.*": 0.2}
    rounded, plain = (diffprune.plan(dit(), criterion="magnitude", ratio=ratio, round_to=n) for n in (24, None))
    assert [left for left, _ in widths(plain).values()] == [64, 102]
    assert [left for left, _ in widths(rounded).values()] == [72, 96]
    assert widths(rounded, ("heads",)) == widths(plain, ("heads",))
    ignored = diffprune.plan(dit(), criterion="magnitude", ignore=("transformer_blocks.0.*",), round_to=24)
    assert [left for left, _ in widths(ignored).values()] == [128, 96]


@pytest.mark.parametrize("options", [{"ratio": 0.5}, {"keep_params": 0.5}, {"keep_params": 0.5, "ranking": "global"}])
def test_in_rounds_every_width_is_a_multiple_and_nothing_comes_back(
    options: dict[str, object], kept_by_round: list[dict[str, tuple[int, ...]]]
) -> None:
    unet = tiny_unet(block_out_channels=(32, 64))
    plan = diffprune.plan(unet, criterion="random", rounds=4, round_to=8, **options)
    check_widths(plan, 8)
    for before, after in pairwise(kept_by_round):
        assert all({*after[name]} <= {*before[name]} for name in after)
    if "ratio" in options:
        at_once = diffprune.plan(unet, criterion="random", round_to=8, **options)
        assert widths(plan) == widths(at_once)
    else:
        assert plan.after.params <= 0.5 * plan.before.params


def test_without_it_a_plan_is_as_it_was() -> None:
    unet = tiny_unet()
    plain, ones = (diffprune.plan(unet, criterion="magnitude", ratio=0.3, round_to=n) for n in (None, 1))
    assert plain.groups == ones.groups
    assert any(left % 8 for left, _ in widths(plain).values())


@pytest.mark.parametrize(
    ("capability", "precision", "expected"),
    [("AVX512", "no", 16), ("AVX512", "bf16", 32), ("AVX2", "no", 8), ("AVX2", "bf16", 8), ("DEFAULT", "no", 8)],
)
def test_auto_is_what_suits_the_processor(
    capability: str, precision: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert rounding.width_of(torch.device("cpu"), precision) == expected
    assert rounding.width_of(torch.device("cuda"), precision) == 8


def test_auto_follows_the_precision_that_auto_becomes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    found = []
    for fast in (True, False):
        monkeypatch.setattr(autocast, "is_fast_in_bf16", lambda device, fast=fast: fast)
        found.append(resolve_auto(PlanOptions(round_to="auto", device="cpu")).round_to)
    assert found == [32, 16]


def test_auto_is_recorded_as_a_number_that_a_plan_keeps_on_other_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounding, "width_of", lambda *told: 12)
    tiny_pipeline(block_out_channels=(32, 64), norm_num_groups=4).save_pretrained(tmp_path / "model")
    words = [str(tmp_path / "model"), "--criterion", "magnitude", "--round-to", "auto", "--device", "cpu", "--out"]
    for command, out in (("plan", "plan.json"), ("plan", "plan"), ("prune", "pruned")):
        assert main([command, *words, str(tmp_path / out)]) == 0
    plan = diffprune.read_plan(tmp_path / "plan.json")
    check_widths(plan, 12)
    assert plan.options["round_to"] == 12
    assert plan.groups == diffprune.read_plan(tmp_path / "plan" / "plan.json").groups
    assert [read_json(tmp_path / f / "run.json")["options"]["round_to"] for f in ("plan", "pruned")] == [12, 12]
    monkeypatch.setattr(rounding, "width_of", lambda *told: 20)
    small = diffprune.prune(diffprune.load_pipeline(tmp_path / "model"), plan).unet
    again = diffprune.load_pipeline(tmp_path / "pruned").unet
    assert {n: p.shape for n, p in small.named_parameters()} == {n: p.shape for n, p in again.named_parameters()}
    told = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 18])
    with torch.no_grad():
        assert torch.equal(small(*told).sample, again(*told).sample)


@pytest.mark.parametrize("width", ["0", "-8", "wide", "1.5", "True"])
def test_a_width_that_is_none_is_refused(width: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "ddpm-digits", "--round-to", width]) == 2
    message = capsys.readouterr().err
    assert f"--round-to: got '{width}', expected an integer of at least 1, such as 16, or auto" in message


def test_a_width_beyond_all_groups_is_refused_and_a_budget_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    groups = [channels(12), Group("h", "heads", 96, ())]
    with pytest.raises(OptionError, match="no group of channels or neurons has a multiple of 12 below its width"):
        check_patterns(groups, BudgetOptions(round_to=12))
    check_patterns(groups, BudgetOptions(round_to=11))
    assert main(["plan", "ddpm-digits", "--round-to", "64", "--keep-macs", "0.5"]) == 2
    assert "ignored layers, multiples of 64 and bounds" in capsys.readouterr().err


def test_none_on_the_command_line_is_the_published_rule(capsys: pytest.CaptureFixture[str]) -> None:
    def params(*words: str) -> int:
        assert main(["plan", "ddpm-digits", "--json", *words]) == 0
        return int(json.loads(capsys.readouterr().out)["params_after"])

    assert params("--round-to", "none") == params() != params("--round-to", "16")
