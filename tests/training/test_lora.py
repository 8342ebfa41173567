"""Low-rank adapters: nothing changes when they come, and what they learnt stays when they go."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

import diffprune
from diffprune.calibration.calibration_set import images_for
from diffprune.options import FinetuneOptions
from diffprune.pipelines.denoiser_access import with_denoiser
from diffprune.pipelines.diffusion import process_of
from diffprune.pipelines.predict import predict
from diffprune.training.batches import check_conditions
from diffprune.training.lora import add_adapters, merge_adapters
from diffprune.training.trainer import train_denoiser
from tests.conftest import tiny_pipeline, tiny_unet


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


def test_finetuning_with_adapters_learns_and_leaves_an_ordinary_pruned_model(tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    small = diffprune.prune(pipeline, diffprune.plan(pipeline, criterion="magnitude", ratio=0.25))
    before = copy.deepcopy(small.unet.state_dict())
    options = FinetuneOptions(
        data="digits", steps=30, batch_size=8, log_every=10, learning_rate=3e-3, lora_rank=4, ema_decay=0.5,
        feature_weight=0.1,
    )  # fmt: skip
    process = process_of(small)
    trained, history = train_denoiser(
        small.unet, process, images_for(process, "digits"), options, teacher=pipeline.unet
    )
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]
    assert trained.state_dict().keys() == before.keys()
    changed = {name for name, value in trained.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert not any("norm" in name or name.endswith("bias") for name in changed)
    with_denoiser(small, trained).save_pretrained(tmp_path)
    again = diffprune.load_pipeline(str(tmp_path))
    torch.testing.assert_close(answer(again.unet), answer(trained))


def test_a_missing_peft_is_told_before_any_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    options = FinetuneOptions(data="digits", lora_rank=2)
    with pytest.raises(diffprune.OptionError, match=r"diffprune\[lora\]"):
        check_conditions(process_of(tiny_pipeline()), images_for(process_of(tiny_pipeline()), "digits"), options)
