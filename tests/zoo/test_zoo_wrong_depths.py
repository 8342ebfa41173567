"""Blocks that cannot just be left out: the shorter model loads, every key in place, and computes something else.

These are why `architectures/depth/block_table.py` knows what it knows about these classes, and why Chroma is not in it.
"""

import copy
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from diffprune.architectures.depth.block_table import DEPTHS, block_lists
from diffprune.architectures.example_inputs import derived_inputs as inputs
from diffprune.artifact.shorten import keep_blocks
from tests.helpers.bypass import Bypass
from tests.zoo.zoo import SMALL_INPUTS, largest_difference, outputs_of, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:.*FluxPosEmbed.*:FutureWarning")  # diffusers' own


@pytest.fixture(autouse=True)
def _small_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in SMALL_INPUTS.items():
        monkeypatch.setattr(inputs, name, size)


@dataclass(frozen=True)
class Case:
    """A model, the blocks taken out of one of its lists, and the config that seems to fit what is left.

    along: module lists that lose the same entries.
    """

    class_name: str
    dense: Mapping[str, Any]
    path: str
    gone: Collection[int]
    naive: Mapping[str, Any]
    along: tuple[str, ...] = field(default=())

    def without(self, whole: Any) -> Any:
        """What a user would write who only counts: fewer blocks in the config, the others' weights moved up."""
        with torch.random.fork_rng():
            small = type(whole).from_config({**whole.config, **self.naive})
        state = whole.state_dict()
        for path in (self.path, *self.along):
            state = {new: v for key, v in state.items() if (new := _moved_up(key, path, self.gone)) is not None}
        small.load_state_dict(state, strict=True)
        return small.eval()

    def bypassed(self, whole: Any) -> Any:
        """The whole model in which the blocks do nothing."""
        dense = copy.deepcopy(whole)
        blocks = dense.get_submodule(self.path)
        for index in self.gone:
            whole_block = blocks[index]
            blocks[index] = Bypass(whole_block)
            blocks[index].norm1 = getattr(whole_block, "norm1", None)  # DiT's output asks its first block for one
        return dense


def _moved_up(key: str, path: str, gone: Collection[int]) -> str | None:
    match = re.match(rf"{path}\.(\d+)\.", key)
    if match is None:
        return key
    index = int(match.group(1))
    return None if index in gone else f"{path}.{index - sum(g < index for g in gone)}.{key[match.end() :]}"


SILENT = [
    Case("ChromaTransformer2DModel", {"num_layers": 3}, "transformer_blocks", [0], {"num_layers": 2}),
    Case("DiTTransformer2DModel", {"num_layers": 3}, "transformer_blocks", [0], {"num_layers": 2}),
    Case("WanVACETransformer3DModel", {"num_layers": 4, "vace_layers": [0, 2]}, "blocks", [1], {"num_layers": 3}),
    Case(
        "HiDreamImageTransformer2DModel", {"llama_layers": (3, 0, 1, 3)}, "double_stream_blocks", [0],
        {"num_layers": 1, "llama_layers": (3, 0, 1)}, along=("caption_projection",),
    ),
    # the target of another block's skip
    Case("HunyuanDiT2DModel", {"num_layers": 8}, "blocks", [0, 6], {"num_layers": 6}),
]  # fmt: skip

LOUD = [
    Case("SD3Transformer2DModel", {"num_layers": 3}, "transformer_blocks", [2], {"num_layers": 2}),
    Case(
        "EasyAnimateTransformer3DModel", {"num_layers": 3, "mmdit_layers": 2}, "transformer_blocks", [0],
        {"num_layers": 2},
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", SILENT, ids=lambda case: case.class_name)
def test_the_shorter_model_loads_and_is_silently_wrong(case: Case) -> None:
    whole = tiny_model(case.class_name, **case.dense)
    assert largest_difference(outputs_of(case.without(whole)), outputs_of(case.bypassed(whole))) > 1e-3


@pytest.mark.parametrize("case", LOUD, ids=lambda case: case.class_name)
def test_the_weights_of_the_shorter_model_do_not_fit(case: Case) -> None:
    with pytest.raises(RuntimeError, match=r"Error.s. in loading state_dict"):
        case.without(tiny_model(case.class_name, **case.dense))


def test_no_block_of_chroma_is_offered() -> None:
    """All its blocks are told how to modulate by their distance from the end of both lists."""
    assert "ChromaTransformer2DModel" not in DEPTHS
    assert not block_lists(tiny_model("ChromaTransformer2DModel"))


@pytest.mark.parametrize(
    ("name", "dense", "path", "index"),
    [
        ("DiTTransformer2DModel", {"num_layers": 3}, "transformer_blocks", 0),
        ("SD3Transformer2DModel", {"num_layers": 3}, "transformer_blocks", 2),
        ("WanVACETransformer3DModel", {"num_layers": 4, "vace_layers": [0, 2]}, "blocks", 2),
        ("HiDreamImageTransformer2DModel", {"llama_layers": (0, 1, 2, 3)}, "single_stream_blocks", 1),
        (
            "HiDreamImageTransformer2DModel", {"num_single_layers": 0, "llama_layers": (0, 1)}, "double_stream_blocks",
            1,
        ),
    ],
)  # fmt: skip
def test_blocks_that_are_used_in_a_way_of_their_own_have_to_stay(
    name: str, dense: dict[str, Any], path: str, index: int
) -> None:
    whole = tiny_model(name, **dense)
    number = len(whole.get_submodule(path))
    with pytest.raises(ValueError, match=f"{path}: block {index} of a {name} cannot be removed"):
        keep_blocks(whole, {path: [i for i in range(number) if i != index]})


def test_what_the_config_says_about_blocks_by_their_index_moves_up() -> None:
    vace = tiny_model("WanVACETransformer3DModel", num_layers=5, vace_layers=[0, 3])
    assert keep_blocks(vace, {"blocks": [0, 2, 3, 4]}).config.vace_layers == [0, 2]
    mixed = tiny_model("EasyAnimateTransformer3DModel", num_layers=4, mmdit_layers=2)
    assert keep_blocks(mixed, {"transformer_blocks": [1, 2, 3]}).config.mmdit_layers == 1
    dream = tiny_model("HiDreamImageTransformer2DModel", llama_layers=(0, 1, 2, 3))
    both = keep_blocks(dream, {"double_stream_blocks": [1], "single_stream_blocks": [1]})
    assert both.config.llama_layers == [1, 3]
    assert len(both.caption_projection) == 3
