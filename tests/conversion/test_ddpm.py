"""DDPM research checkpoints compute the same as a network written independently, whatever the file's layout."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffprune.conversion.ddpm import find_architecture, from_ddpm
from diffprune.conversion.state_dicts import weights_in
from diffprune.errors import ModelError
from diffprune.pipelines.builtin import ARCHITECTURES
from tests.helpers.research_ddpm import ResearchUNet


def research(name: str, seed: int = 0) -> nn.Module:
    """The research network at a quarter of its width, with weights that make every layer matter."""
    with torch.device("meta"):
        network = ResearchUNet(**LEVELS[name]).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            fan_in = max(1, parameter[0].numel() if parameter.dim() > 1 else 1)
            is_norm = parameter.dim() == 1 and "norm" in name and name.endswith("weight")
            parameter.copy_(1 + 0.3 * noise if is_norm else noise * (fan_in**-0.5 if parameter.dim() > 1 else 0.2))
    return network.eval()


def shrunk(folder: Path, name: str, **changes: Any) -> Path:
    """A published architecture at a quarter of its width, as a config.json."""
    config = ARCHITECTURES[name]
    config = {**config, "block_out_channels": [max(32, w // 4) for w in config["block_out_channels"]], **changes}
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "config.json"


LEVELS = {
    "ddpm-cifar10": {"ch": 32, "mult": (1, 2, 2, 2), "resolutions": (16,), "size": 32},
    "ddpm-celeba64": {"ch": 32, "mult": (1, 2, 2, 2, 4), "resolutions": (16,), "size": 64},
    "ddpm-lsun256": {"ch": 32, "mult": (1, 1, 2, 2, 4, 4), "resolutions": (16,), "size": 256},
}


@pytest.mark.parametrize("name", LEVELS)
def test_outputs_equal_those_of_the_research_network(name: str, tmp_path: Path) -> None:
    network = research(name)
    pipeline, _ = from_ddpm(network.state_dict(), str(shrunk(tmp_path, name)))
    generator = torch.Generator().manual_seed(1)
    size = 64 if name == "ddpm-lsun256" else 32  # a smaller image takes the same path, attention included
    images, timesteps = torch.randn(1, 3, size, size, generator=generator), torch.tensor([777])
    with torch.no_grad():
        expected, ours = network(images, timesteps), pipeline.unet(images, timesteps).sample
    assert expected.std() > 0.1
    assert torch.allclose(ours, expected, atol=1e-4)


@pytest.mark.parametrize("name", LEVELS)
def test_a_published_architecture_is_found_by_its_shapes(name: str) -> None:
    with torch.device("meta"):
        network = ResearchUNet(**{**LEVELS[name], "ch": 128})
    assert find_architecture(network.state_dict()) == name
    other = next(n for n in LEVELS if n != name)
    with pytest.raises(ModelError, match=f"not those of {other}"):
        from_ddpm(network.state_dict(), other)


def test_the_schedule_is_the_published_one(tmp_path: Path) -> None:
    pipeline, _ = from_ddpm(research("ddpm-cifar10").state_dict(), str(shrunk(tmp_path, "ddpm-cifar10")))
    betas = pipeline.scheduler.betas
    assert len(betas) == 1000
    assert torch.allclose(betas[[0, -1]], torch.tensor([1e-4, 0.02]))
    assert torch.allclose(betas.diff(), betas.diff()[0], atol=1e-7)


# layouts of the file

RAW = {"a.weight": torch.zeros(2, 3), "b": torch.zeros(4)}
EMA = {name: tensor + 1 for name, tensor in RAW.items()}


def prefixed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{name}": tensor for name, tensor in tensors.items()}


LAYOUTS: dict[str, Any] = {
    "ema by name": [RAW, {}, 1, 2, EMA],
    "ema by name, both prefixed": [prefixed(RAW), {}, 1, 2, prefixed(EMA)],
    "ema by name, weights prefixed": [prefixed(RAW), {}, 1, 2, EMA],
    "ema in order": [prefixed(RAW), {}, 1, 2, list(EMA.values())],
    "ema in order, below shadow_params": [RAW, {}, 1, 2, {"decay": 0.9, "shadow_params": list(EMA.values())}],
    "a tuple": (RAW, {}, 1, 2, EMA),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ema_weights_are_taken_unless_raw_ones_are_asked_for(layout: str) -> None:
    ema, raw = (weights_in(LAYOUTS[layout], wanted=wanted) for wanted in (None, "raw"))
    assert (ema.kind, raw.kind) == ("ema", "raw")
    assert {name: float(t.mean()) for name, t in ema.tensors.items()} == {"a.weight": 1, "b": 1}
    assert {name: float(t.mean()) for name, t in raw.tensors.items()} == {"a.weight": 0, "b": 0}


def test_a_list_without_ema_falls_back_to_raw_weights_and_says_so() -> None:
    found = weights_in([RAW, {}, 1, 2], wanted=None)
    assert found.kind == "raw"
    assert "no EMA" in found.notes[0]
    with pytest.raises(ModelError, match="no EMA weights"):
        weights_in([RAW, {}, 1, 2], wanted="ema")


@pytest.mark.parametrize("content", [RAW, prefixed(RAW), {"state_dict": RAW, "epoch": 3}])
def test_a_single_set_of_weights_is_taken_as_it_is(content: Any) -> None:
    found = weights_in(content, wanted=None)
    assert found.kind == "stored"
    assert list(found.tensors) == list(RAW)
    with pytest.raises(ModelError, match="remove --weights raw"):
        weights_in(content, wanted="raw")


UNKNOWN: dict[str, tuple[Any, str]] = {
    "no weights": ({"epoch": 3}, "a dict of epoch"),
    "a number": (7, "holds a int"),
    "empty": ([], "an empty list"),
    "a shorter ema": ([RAW, {}, 1, 2, [RAW["b"]]], "the EMA has 1 tensors, the weights 2"),
    "an ema of other names": ([RAW, {}, 1, 2, {"a.weight": RAW["a.weight"], "c": RAW["b"]}], "differ in b, c"),
    "an ema of other shapes": ([RAW, {}, 1, 2, [RAW["b"], RAW["a.weight"]]], "differ in a.weight, b"),
    "an ema of something else": ([RAW, {}, 1, 2, "no"], "the EMA is a str"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_another_layout_is_refused_with_what_it_holds(case: str) -> None:
    content, expected = UNKNOWN[case]
    with pytest.raises(ModelError, match=expected):
        weights_in(content, wanted=None)


# weights that do not fit

DAMAGE: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "missing": (lambda t: t.pop("mid.attn_1.q.weight"), r"1 missing: mid\.attn_1\.q\.weight"),
    "unexpected": (lambda t: t.update(extra=torch.zeros(1)), "1 unexpected: extra"),
    "another shape": (
        lambda t: t.update({"conv_in.bias": torch.zeros(3)}),
        r"1 with the wrong shape: conv_in\.bias \(got 3, expected 32\)",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_tensors_that_do_not_fit_are_named_as_in_the_file(case: str, tmp_path: Path) -> None:
    change, expected = DAMAGE[case]
    tensors = dict(research("ddpm-cifar10").state_dict())
    change(tensors)
    with pytest.raises(ModelError, match=expected):
        from_ddpm(tensors, str(shrunk(tmp_path, "ddpm-cifar10")))
    with pytest.raises(ModelError, match=r"fit none of the published(.|\n)*ddpm-lsun256"):
        from_ddpm(tensors, None)


FACTS = {"downsample_padding": 1, "attention_head_dim": 8, "norm_eps": 1e-5, "freq_shift": 0, "flip_sin_to_cos": True}


@pytest.mark.parametrize("fact", FACTS)
def test_a_config_that_fits_the_shapes_but_computes_otherwise_is_refused(fact: str, tmp_path: Path) -> None:
    tensors = research("ddpm-cifar10").state_dict()
    with pytest.raises(ModelError, match=f"{fact}: got {FACTS[fact]}"):
        from_ddpm(tensors, str(shrunk(tmp_path, "ddpm-cifar10", **{fact: FACTS[fact]})))
