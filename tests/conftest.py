"""Tiny models and data, made in memory, without downloads; fixtures shared by all tests."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # one worker per core: set before torch is imported, also for subprocesses
    os.environ.setdefault("OMP_NUM_THREADS", "1")
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

cost.MIN_RUN_TIME_S = 0.01  # no test depends on measured latencies
autocast.is_fast_in_bf16 = lambda device: False  # `auto` is fp32, in which results are promised bit for bit


def tiny_unet(**changes: object) -> UNet2DModel:
    """Return a seeded UNet2DModel of about 50k parameters for gray 16x16 images, in eval mode."""
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
    """Return a text-conditioned UNet with levels as in SDXL: one without attention, others with several blocks."""
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
    """Return the tiny UNet with a noise schedule of 20 timesteps."""
    return DDPMPipeline(tiny_unet(**changes), DDPMScheduler(num_train_timesteps=20))


@pytest.fixture
def kept_by_round(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, tuple[int, ...]]]:
    """Record the units kept after each round of every plan in the test."""
    kept: list[dict[str, tuple[int, ...]]] = []
    original = rounds.fit

    def recording(*args: Any, **kwargs: Any) -> fitting.Fitted:
        fitted = original(*args, **kwargs)
        kept.append(fitted.kept)
        return fitted

    monkeypatch.setattr(rounds, "fit", recording)
    return kept


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
    """Twelve gray 16x16 noise images."""
    folder = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for i in range(12):
        pixels = torch.randint(0, 256, (16, 16), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{i:04d}.png")
    return folder


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with forking(tmp_path_factory.mktemp("forks")) as interpreter:
        yield interpreter


def random_inception() -> dict[str, torch.Tensor]:
    """Return random weights with the published names and shapes, which preserve the scale of activations."""
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
    """Write images of random color blocks, whose edges differ between resizing filters."""
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
    """Stand in for `load_inception`."""
    return Inception(torch.nn.ParameterList([torch.zeros(1)]), "0123456789abcdef" if path is None else path.stem)


def quick_embed(inception: Inception, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """Stand in for the network, which takes half a second per image: features are projections of the input."""
    coarse = torch.nn.functional.adaptive_avg_pool2d(inputs, 8).flatten(1)
    generator = torch.Generator().manual_seed(0)
    return {layer: coarse @ torch.randn(coarse.shape[1], size, generator=generator) for layer, size in LAYERS.items()}


@pytest.fixture
def quick_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use `quick_embed` instead of the Inception network."""
    monkeypatch.setattr("diffprune.stages.stats_stage.load_inception", quick_inception)
    monkeypatch.setattr("diffprune.evaluation.inception_evaluation.load_inception", quick_inception)
    monkeypatch.setattr("diffprune.evaluation.inception_features.embed", quick_embed)


@pytest.fixture(autouse=True)
def _global_random_state_is_unchanged() -> Iterator[None]:
    """Check that the library does not change torch's global random state."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state()), "the global random state was changed"
