"""Depth of UNets: transformer blocks of their attentions and the block in the middle, said by a stock config."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn

import diffprune
from diffprune.architectures.depth.block_table import block_lists
from diffprune.artifact.shorten import keep_blocks
from diffprune.calibration.calibration_set import Calibration
from diffprune.criteria.bypass import bypass
from diffprune.criteria.cosine import _direction_change, cosine
from diffprune.groups import find_blocks, find_groups, remove_units
from diffprune.options import PlanOptions
from diffprune.runs.accumulator import Accumulator
from tests.conftest import text_unet, tiny_unet
from tests.helpers.bypass import bypass_blocks

DOWN, UP = "transformer_layers_per_block", "reverse_transformer_layers_per_block"


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


STABLE_DIFFUSION: dict[str, Any] = {
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    DOWN: 1,
}
"""The last level has no attention, the middle one of its own."""


SHALLOW: dict[str, Any] = {
    "block_out_channels": (8, 16), "layers_per_block": 1, DOWN: [1, 3],
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip


def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sample, text = (torch.randn(shape, generator=generator) for shape in ((2, 4, 8, 8), (2, 5, 12)))
    return {"sample": sample, "timestep": torch.tensor([3, 7]), "encoder_hidden_states": text}


@torch.no_grad()
def output_of(model: nn.Module, **given: Tensor) -> Tensor:
    result: Tensor = model(**(given or inputs()), return_dict=False)[0]
    return result


def without(whole: Any, gone: dict[str, set[int]]) -> tuple[Any, Any]:
    """The smaller model, and the whole one with the same blocks bypassed."""
    units = {found.name: found.units for found in block_lists(whole)}
    kept = {name: [i for i in range(len(units[name])) if i not in indices] for name, indices in gone.items()}
    bypassed = copy.deepcopy(whole)
    for name, indices in gone.items():
        for index in indices:
            bypass_blocks(bypassed, units[name][index])
    return keep_blocks(whole, kept), bypassed


UNEVEN = {
    "down_blocks.2.attentions.0.transformer_blocks": {1},
    "down_blocks.2.attentions.1.transformer_blocks": {0, 2},
    "up_blocks.0.attentions.1.transformer_blocks": {0, 1, 2},
}


def test_blocks_that_go_unevenly_are_counted_by_attention() -> None:
    small, bypassed = without(text_unet(), UNEVEN)
    assert torch.equal(output_of(small), output_of(bypassed))
    assert small.config[DOWN] == [1, 2, [2, 1]]
    assert small.config[UP] == [[3, 0, 3], 2, 1]
    assert len(small.mid_block.attentions[0].transformer_blocks) == 2


def test_a_model_that_is_counted_by_attention_loses_more() -> None:
    once, _ = without(text_unet(), UNEVEN)
    twice, bypassed = without(once, {"up_blocks.0.attentions.0.transformer_blocks": {2}})
    assert torch.equal(output_of(twice), output_of(bypassed))
    assert twice.config[UP] == [[2, 0, 3], 2, 1]


@pytest.mark.parametrize("changes", [{}, STABLE_DIFFUSION], ids=["SDXL", "SD"])
def test_all_transformer_blocks_and_the_middle_may_go(changes: dict[str, Any]) -> None:
    whole = text_unet(**changes)
    small, bypassed = without(whole, {found.name: {*range(len(found.units))} for found in block_lists(whole)})
    assert torch.equal(output_of(small), output_of(bypassed))
    assert small.mid_block is None
    assert not any("transformer_blocks." in name for name, _ in small.named_parameters())
    assert not block_lists(small)
    again = UNet2DConditionModel.from_config(small.config)
    assert [*again.state_dict()] == [*small.state_dict()]


def test_equal_numbers_of_all_attentions_of_a_level_are_one_number() -> None:
    levels = (
        "down_blocks.2.attentions.0",
        "down_blocks.2.attentions.1",
        *(f"up_blocks.0.attentions.{i}" for i in range(3)),
    )
    small, bypassed = without(text_unet(), {f"{path}.transformer_blocks": {0} for path in levels})
    assert torch.equal(output_of(small), output_of(bypassed))
    assert (small.config[DOWN], small.config[UP]) == ([1, 2, 2], None)


def test_the_middle_of_an_unconditional_unet_may_go() -> None:
    whole = tiny_unet()
    small, bypassed = without(whole, {"mid_block": {0}})
    given = {"sample": torch.randn(2, 1, 16, 16), "timestep": torch.tensor([3, 7])}
    assert torch.equal(output_of(small, **given), output_of(bypassed, **given))
    assert type(small) is type(whole)


def test_widths_go_together_with_blocks() -> None:
    whole = text_unet()
    groups = [*find_groups(whole, kinds=["neurons", "heads"]), *find_blocks(whole)]
    kept = {g.name: [*range(1, g.num_units)] for g in groups if g.kind != "blocks"}
    narrow = remove_units(whole, groups, kept)
    _, bypassed = without(narrow, {**UNEVEN, "mid_block": {0}})
    gone = {g.name: UNEVEN.get(g.name, set()) | ({0} if g.name == "mid_block" else set()) for g in find_blocks(whole)}
    blocks = {g.name: [i for i in range(g.num_units) if i not in gone[g.name]] for g in find_blocks(whole)}
    assert torch.equal(output_of(remove_units(whole, groups, {**kept, **blocks})), output_of(bypassed))


def idle_block(model: UNet2DConditionModel, path: str) -> None:
    """Make a transformer block do nothing: its branches end in zeros."""
    block: Any = model.get_submodule(path)
    for last in (block.attn1.to_out[0], block.attn2.to_out[0], block.ff.net[2]):
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)


@pytest.mark.parametrize("criterion", [bypass, cosine])
def test_a_block_that_does_nothing_scores_nothing(criterion: Any) -> None:
    whole = text_unet(**SHALLOW)
    idle_block(whole, "up_blocks.0.attentions.1.transformer_blocks.1")
    text = torch.randn(3, 5, 12)
    calibration = Calibration(
        torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), DDPMScheduler(num_train_timesteps=20),
        {"encoder_hidden_states": text},
    )  # fmt: skip
    options = PlanOptions(block_timesteps=2, batch_size=2)
    values = criterion(whole, find_blocks(whole), calibration, options, Accumulator()).values
    assert values["up_blocks.0.attentions.1.transformer_blocks"][1] == pytest.approx(0, abs=1e-6)
    others = torch.cat([scores for name, scores in values.items()])
    assert (others > 1e-6).sum() == len(others) - 1


def test_the_middle_turns_the_channels_of_each_place() -> None:
    feature_map = torch.randn(2, 8, 4, 4)
    brighter = feature_map * torch.rand(2, 1, 4, 4)
    assert _direction_change([feature_map], brighter) == pytest.approx(0, abs=1e-5)
    assert _direction_change([feature_map], (-feature_map,)) == pytest.approx(4)


def test_a_plan_meets_a_budget_of_macs_and_is_carried_out_exactly() -> None:
    whole = text_unet(**SHALLOW)
    plan = diffprune.plan(whole, kinds=("blocks",), keep_macs=0.8, ranking="global", criterion="random")
    small = diffprune.prune(whole, plan)
    assert 0.7 * plan.before.macs < plan.after.macs <= 0.8 * plan.before.macs
    assert sum(p.numel() for p in small.parameters()) == plan.after.params
    assert type(small) is UNet2DConditionModel
    gone = {name: {*range(units.num_units)} - {*units.kept} for name, units in plan.groups.items()}
    assert torch.equal(output_of(small), output_of(without(whole, gone)[1]))


def test_rounds_go_on_after_a_list_has_lost_all_its_blocks() -> None:
    options: dict[str, Any] = {"kinds": ("blocks",), "criterion": "random", "ranking": "global"}
    plan = diffprune.plan(text_unet(**SHALLOW), ratio=0.8, rounds=2, **options)
    assert () in [units.kept for units in plan.groups.values()]
    assert sum(len(units.kept) for units in plan.groups.values()) == 2
    small = diffprune.prune(text_unet(**SHALLOW), plan)
    assert sum(p.numel() for p in small.parameters()) == plan.after.params
