"""Tiny models and data, made in memory; nothing here downloads anything."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DConditionModel, UNet2DModel
from PIL import Image
from torchvision.models import inception_v3

from diffprune.compute import autocast, cost
from diffprune.evaluation.inception import LAYERS, Inception
from diffprune.planning import budget as fitting
from diffprune.planning import rounds
from tests.helpers.forks import Forks, forking

cost.MIN_RUN_TIME_S = 0.01  # nothing here looks at how long a pass takes
autocast.is_fast_in_bf16 = lambda device: False  # `auto` is fp32: what is promised to the bit is promised in it


def tiny_unet(**changes: object) -> UNet2DModel:
    """A UNet2DModel of about 50k parameters for grey 16x16 images, in eval mode, seeded."""
    config: dict[str, object] = {
        "sample_size": 16,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": None,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DModel(**{**config, **changes}).eval()


def text_unet(**changes: object) -> UNet2DConditionModel:
    """A text-conditioned UNet with levels as in SDXL: without attention, with several transformer blocks in each."""
    config: dict[str, object] = {
        "sample_size": 8, "block_out_channels": (8, 8, 16), "layers_per_block": 2, "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 12,
        "attention_head_dim": 2, "transformer_layers_per_block": [1, 2, 3], "use_linear_projection": True,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DConditionModel(**{**config, **changes}).eval()


def tiny_pipeline(**changes: object) -> DDPMPipeline:
    """The tiny UNet with a noise schedule of 20 timesteps."""
    return DDPMPipeline(tiny_unet(**changes), DDPMScheduler(num_train_timesteps=20))


@pytest.fixture
def kept_by_round(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, tuple[int, ...]]]:
    """The units that stay after each round of the plans that are made meanwhile."""
    seen: list[dict[str, tuple[int, ...]]] = []
    original = rounds.fit

    def watching(*args: Any, **kwargs: Any) -> fitting.Fitted:
        fitted = original(*args, **kwargs)
        seen.append(fitted.kept)
        return fitted

    monkeypatch.setattr(rounds, "fit", watching)
    return seen


@pytest.fixture
def unet() -> UNet2DModel:
    return tiny_unet()


@pytest.fixture
def pipeline() -> DDPMPipeline:
    return tiny_pipeline()


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline, saved by diffusers."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve grey 16x16 noise images."""
    folder = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for i in range(12):
        pixels = torch.randint(0, 256, (16, 16), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{i:04d}.png")
    return folder


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with forking(tmp_path_factory.mktemp("forks")) as found:
        yield found


def random_inception() -> dict[str, torch.Tensor]:
    """A state dict with the names and shapes of the published one; activations keep their size from layer to layer."""
    with torch.device("meta"):
        shapes = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False).state_dict()
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, value in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(0)
        elif name.endswith(("bn.weight", "running_var")):
            state[name] = 0.75 + 0.5 * torch.rand(value.shape, generator=generator)
        elif value.dim() > 1:
            state[name] = torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5
        else:
            state[name] = 0.1 * torch.randn(value.shape, generator=generator)
    return state


def photos(folder: Path, seed: int, num: int = 3, size: tuple[int, int] = (40, 32)) -> Path:
    """Random colour blocks, with edges that the ways of resizing treat differently."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for index in range(num):
        coarse = Image.fromarray(random.integers(0, 256, (5, 4, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.NEAREST).save(folder / f"{index:04d}.png")
    return folder


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(random_inception(), path)
    return path


@pytest.fixture(scope="session")
def photo_sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two folders of three 40x32 images."""
    folder = tmp_path_factory.mktemp("sets")
    return photos(folder / "images", 1), photos(folder / "reference", 2)


def quick_inception(path: Path | None, device: torch.device) -> Inception:
    """In place of `load_inception`."""
    return Inception(torch.nn.ParameterList([torch.zeros(1)]), "0123456789abcdef" if path is None else path.stem)


def quick_embed(inception: Inception, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """Features that are projections of the input, in place of a network that takes half a second an image."""
    coarse = torch.nn.functional.adaptive_avg_pool2d(inputs, 8).flatten(1)
    generator = torch.Generator().manual_seed(0)
    return {layer: coarse @ torch.randn(coarse.shape[1], size, generator=generator) for layer, size in LAYERS.items()}


@pytest.fixture
def quick_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """`quick_embed` everywhere."""
    monkeypatch.setattr("diffprune.stages.stats_stage.load_inception", quick_inception)
    monkeypatch.setattr("diffprune.evaluation.inception_evaluation.load_inception", quick_inception)
    monkeypatch.setattr("diffprune.evaluation.inception_features.embed", quick_embed)


@pytest.fixture(autouse=True)
def _nothing_global_changes() -> Iterator[None]:
    """The library must leave torch's global random state alone."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state()), "the global random state was changed"
