"""Groups of UNets."""

from diffprune.artifact.slicing import width
from diffprune.groups import Slice, find_groups
from tests.conftest import tiny_unet


def test_every_unit_of_every_slice_lies_inside_its_layer() -> None:
    model = tiny_unet(attention_head_dim=8, resnet_time_scale_shift="scale_shift")
    for group in find_groups(model):
        for part in group.slices:
            assert part.start + group.num_units * part.width <= width(model.get_submodule(part.module), part.dim)


def test_each_output_row_belongs_to_one_group_and_only_the_interface_to_none() -> None:
    model = tiny_unet()
    owners: dict[tuple[str, int], str] = {}
    for group in find_groups(model):
        for part in (s for s in group.slices if s.dim == "out" and "norm" not in s.module):
            for row in range(part.start, part.start + group.num_units * part.width):
                assert owners.setdefault((part.module, row), group.name) == group.name
    layers = {name for name, m in model.named_modules() if type(m).__name__ in ("Conv2d", "Linear")}
    assert layers - {module for module, _ in owners} == {"conv_out"}


def test_channels_that_pass_a_norm_are_balanced_over_its_groups() -> None:
    groups = {g.name: g for g in find_groups(tiny_unet())}
    assert groups["conv_in"].balance == 4
    assert groups["time_embedding.linear_1"].balance == 1


def test_attention_with_several_heads_is_grouped_into_whole_heads() -> None:
    groups = {g.name: g for g in find_groups(tiny_unet(attention_head_dim=8))}
    heads = groups["mid_block.attentions.0.to_q"]
    assert (heads.kind, heads.num_units) == ("heads", 4)
    assert Slice("mid_block.attentions.0.to_out.0", "in", 0, 8) in heads.slices
    assert len(heads.slices) == 4


def test_attention_with_one_head_gives_plain_channels_as_published() -> None:
    groups = {g.name: g for g in find_groups(tiny_unet())}
    assert (groups["mid_block.attentions.0.to_q"].kind, groups["mid_block.attentions.0.to_q"].num_units) == (
        "channels",
        32,
    )


def test_concatenated_skips_are_found_at_their_offset() -> None:
    conv_in = next(g for g in find_groups(tiny_unet()) if g.name == "conv_in")
    starts = {s.start for s in conv_in.slices if s.module.startswith("up_blocks.1.resnets")}
    assert starts == {16, 32}  # behind 16 channels of the layer above, and behind 32
