"""Costs of the published architectures, before and after the published rule."""

import pytest
import torch
from diffusers import Lumina2Transformer2DModel

import diffprune
from diffprune.compute.cost import WithoutValues, cost_of, latency_ms, layer_cost_of
from diffprune.pipelines.architecture_configs import architecture

PUBLISHED = {
    "ddpm-cifar10": ((35.746, 6.064), (19.851, 3.392)),
    "ddpm-celeba64": ((78.701, 23.922), (43.735, 13.321)),
    "ddpm-lsun256": ((113.673, 248.688), (63.206, 138.871)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_rule_gives_the_published_sizes_without_weights(name: str) -> None:
    plan = diffprune.plan(architecture(name), ratio=0.3)
    for cost, (params, macs) in zip((plan.before, plan.after), PUBLISHED[name], strict=True):
        assert (round(cost.params / 1e6, 3), round(cost.macs / 1e9, 3)) == (params, macs)
    assert plan.criterion == "random"


def test_attention_products_are_counted_apart() -> None:
    tokens, width, num_attentions = 16 * 16, 256, 5  # ddpm-cifar10 attends at 16x16, and 4x4 in the middle
    expected = num_attentions * 2 * tokens**2 * width + 2 * 16**2 * width
    assert cost_of(architecture("ddpm-cifar10")).attention_macs == expected


def test_the_forecast_is_what_the_pruned_model_costs(unet: object) -> None:
    plan = diffprune.plan(unet, criterion="magnitude", ratio=0.4)
    small = diffprune.prune(unet, plan)
    assert cost_of(small) == plan.after
    layers = layer_cost_of(small)
    assert (layers.params, layers.macs) == (plan.after.params, plan.after.macs)
    assert sum(layers.macs_by_layer.values()) == layers.macs
    assert plan.after.params == small.num_parameters()
    assert {name: sizes[0] for name, sizes in plan.layers.items()}["conv_in"] == 16 * 9 + 16
    assert sum(after for _, after in plan.layers.values()) == small.num_parameters()


def test_latency_is_measured_in_eval_mode_and_the_mode_is_given_back(unet: object) -> None:
    unet.train()
    assert latency_ms(unet) > 0
    assert unet.training


def test_a_forward_pass_that_looks_at_values_is_counted_all_the_same() -> None:
    """Lumina2 reads its text mask as numbers, which the meta device does not have."""
    with torch.random.fork_rng():
        model = Lumina2Transformer2DModel(
            sample_size=8,
            in_channels=4,
            hidden_size=32,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=4,
            num_kv_heads=2,
            multiple_of=8,
            axes_dim_rope=(4, 2, 2),
            axes_lens=(128, 16, 16),
            cap_feat_dim=12,
        )
    cost = cost_of(model)
    assert cost.params == sum(p.numel() for p in model.parameters())
    tokens, text, width = 16, 77, 32
    joint = tokens + text
    assert cost.attention_macs == 2 * width * (tokens**2 + text**2 + joint**2)
    assert cost.macs > 0


def test_counting_computes_whole_numbers_and_of_floats_the_shapes_alone() -> None:
    """The product would take 4 TB."""
    with WithoutValues():
        row = torch.rand(1, 1 << 20, generator=torch.Generator())
        attended = (row.t() @ row).softmax(1).add_(1)
        chosen = attended[:2, :3].topk(1).indices + torch.arange(2)[:, None]
    assert attended.shape == (1 << 20, 1 << 20)
    assert {*chosen.flatten().tolist()} <= {0, 1, 2, 3}
    assert torch.view_as_complex(torch.ones(2, 2)).shape == (2,)
