"""Tiny models and data, made in memory; nothing here downloads anything."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image


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


def tiny_pipeline(**changes: object) -> DDPMPipeline:
    """The tiny UNet with a noise schedule of 20 timesteps."""
    return DDPMPipeline(tiny_unet(**changes), DDPMScheduler(num_train_timesteps=20))


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


@pytest.fixture(autouse=True)
def _nothing_global_changes() -> Iterator[None]:
    """The library must leave torch's global random state alone."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state()), "the global random state was changed"
