"""Depth, for every class of the block table: the shorter model equals the one with the block bypassed."""

import copy
import json
from typing import Any

import pytest
import torch
from torch import nn

from diffprune.architectures.depth.block_table import DEPTHS, block_lists
from diffprune.architectures.example_inputs import derived_inputs as inputs
from diffprune.artifact.pruned_classes import empty_model
from diffprune.artifact.shorten import keep_blocks
from diffprune.groups import find_groups, remove_units
from tests.helpers.bypass import bypass_blocks
from tests.zoo.tiny_configs import CONFIGS
from tests.zoo.zoo import SMALL_INPUTS, largest_difference, outputs_of, tiny_model

pytestmark = [  # diffusers' own
    pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*Transformer2DModelOutput.*:FutureWarning"),
]

NUM_BLOCKS = 3
DEPTH_SETTINGS = (
    "num_layers", "num_single_layers", "num_mmdit_layers", "num_single_dit_layers", "n_layers", "depth",
    "num_text_blocks", "num_visual_blocks",
)  # fmt: skip
DEEPER = {
    "HunyuanDiT2DModel": {"num_layers": 8},
    # the last layer of the text encoder twice, so that its number shows without either
    "HiDreamImageTransformer2DModel": {"llama_layers": (3, 0, 1, 2, 1, 3)},
    "WanVACETransformer3DModel": {"vace_layers": [0, 2]},
    "EasyAnimateTransformer3DModel": {"mmdit_layers": 2},
    "UNet2DConditionModel": {"transformer_layers_per_block": [2, 1], "layers_per_block": 2},
}


@pytest.fixture(autouse=True)
def _small_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in SMALL_INPUTS.items():
        monkeypatch.setattr(inputs, name, size)


def deep_model(name: str) -> Any:
    """A tiny model of a class with three blocks in each of its lists, or pairs of blocks."""
    blocks = {setting: NUM_BLOCKS for setting in DEPTH_SETTINGS if setting in CONFIGS[name]}
    return tiny_model(name, **{**blocks, **DEEPER.get(name, {})})


def shapes_of(model: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", DEPTHS)
def test_any_block_that_may_go_can_go(name: str) -> None:
    whole = deep_model(name)
    lists = block_lists(whole)
    assert lists, "the class has no list of several blocks"
    expected = outputs_of(whole)
    for blocks in lists:
        for gone in sorted({*range(len(blocks.units))} - blocks.fixed):
            bypassed = copy.deepcopy(whole)
            bypass_blocks(bypassed, blocks.units[gone])
            small = keep_blocks(whole, {blocks.name: [i for i in range(len(blocks.units)) if i != gone]})
            assert type(small) is type(whole)
            from_file = empty_model(type(whole), json.loads(small.to_json_string()))
            assert shapes_of(from_file) == shapes_of(small)
            assert largest_difference(outputs_of(small), outputs_of(bypassed)) == 0
            assert largest_difference(outputs_of(small), expected) > 1e-6


@pytest.mark.parametrize("name", ["LTXVideoTransformer3DModel", "MochiTransformer3DModel"])
def test_heads_with_rotary_tables_go_together_with_blocks(name: str) -> None:
    """What a manifest says of a module by its path moves up with the blocks: kept heads too."""
    whole = deep_model(name)
    heads = {g.name: list(range(1, g.num_units)) for g in find_groups(whole, kinds=["heads"])}
    blocks = find_groups(whole, kinds=["blocks"])
    narrow = remove_units(whole, find_groups(whole, kinds=["heads"]), heads)
    both = remove_units(whole, [*find_groups(whole, kinds=["heads"]), *blocks], {**heads, blocks[0].name: [1, 2]})
    bypassed = copy.deepcopy(narrow)
    bypass_blocks(bypassed, [f"{blocks[0].name}.0"])
    assert largest_difference(outputs_of(both), outputs_of(bypassed)) == 0
