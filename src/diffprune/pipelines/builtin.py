"""Built-in models: the shipped pipeline, and architectures without weights. Imports no torch."""

from pathlib import Path
from typing import Any

ASSETS = Path(__file__).parents[1] / "assets"

PIPELINES = {"digits": ASSETS / "digits"}
"""Pretrained pipelines that ship with the package."""


def _ddpm(
    sample_size: int, channels: int, widths: tuple[int, ...], attention_level: int, **other: Any
) -> dict[str, Any]:
    levels = len(widths)
    down = ["DownBlock2D"] * levels
    up = ["UpBlock2D"] * levels
    down[attention_level] = "AttnDownBlock2D"
    up[levels - 1 - attention_level] = "AttnUpBlock2D"
    return {
        "_class_name": "UNet2DModel",
        "sample_size": sample_size,
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": list(widths),
        "down_block_types": down,
        "up_block_types": up,
        "layers_per_block": 2,
        "attention_head_dim": None,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
        "norm_num_groups": 32,
        **other,
    }


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "ddpm-cifar10": _ddpm(32, 3, (128, 256, 256, 256), 1),
    "ddpm-celeba64": _ddpm(64, 3, (128, 256, 256, 256, 512), 2),
    "ddpm-lsun256": _ddpm(256, 3, (128, 128, 256, 256, 512, 512), 4),
    "ddpm-digits": _ddpm(16, 1, (32, 64, 64), 1, norm_num_groups=8, layers_per_block=1, downsample_padding=1),
}
"""Configs of the published DDPM checkpoints (Ho et al. 2020, Song et al. 2021) and of the shipped digits model."""
