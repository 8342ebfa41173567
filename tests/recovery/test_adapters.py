"""Low-rank adapters: nothing changes when they come, and what they learnt stays when they go."""

import copy

import torch
from torch import Tensor

import diffprune
from diffprune.models.families import predict
from diffprune.recovery.adapters import add_adapters, merge_adapters

from conftest import tiny_unet


def pruned() -> object:
    unet = tiny_unet()
    return diffprune.prune(unet, diffprune.plan(unet, criterion="magnitude", ratio=0.25)).requires_grad_(True)


@torch.no_grad()
def answer(model: object) -> Tensor:
    images = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    return predict(model, images, torch.tensor([3, 11]), {})


def test_adapters_come_without_a_trace_and_stay_in_the_weights_when_they_go() -> None:
    model = pruned()
    before, names = answer(model), [name for name, _ in model.named_parameters()]
    frozen = copy.deepcopy(model.state_dict())
    add_adapters(model, 2, seed=0)
    torch.testing.assert_close(answer(model), before)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert 0 < sum(p.numel() for p in learning) < 0.35 * sum(p.numel() for p in frozen.values())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in learning:
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    adapted = answer(model)
    assert float((adapted - before).abs().max()) > 1e-3
    merge_adapters(model)
    assert [name for name, _ in model.named_parameters()] == names
    torch.testing.assert_close(answer(model), adapted, rtol=1e-4, atol=1e-5)
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, frozen[name])]
    assert all(name.endswith("weight") for name in changed)


def test_adapters_are_drawn_by_seed() -> None:
    models = [pruned() for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        add_adapters(model, 2, seed)
    first, same, other = (model.state_dict() for model in models)
    assert all(torch.equal(value, same[name]) for name, value in first.items())
    assert any(not torch.equal(value, other[name]) for name, value in first.items())
