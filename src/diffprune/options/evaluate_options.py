"""Options of `evaluate` and `stats`."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from diffprune.options.image_options import PreparationOptions, SizedPreset
from diffprune.options.in_memory import PromptSource
from diffprune.options.option_set import Groups

Metric = Literal[
    "ssim", "mse", "psnr", "lpips", "frechet_distance", "fid", "sfid", "kid", "inception_score", "precision", "recall",
    "clip_score",
]  # fmt: skip
Resize = Literal["legacy", "clean", "tensorflow"]

PAIRED_METRICS = ("ssim", "mse", "psnr", "lpips")
"""Metrics of image pairs: image i of both folders."""

MOMENT_METRICS = ("fid", "sfid")
"""Metrics of means and covariances: stored statistics can replace the images."""

LONE_METRICS = ("inception_score", "clip_score")
"""Metrics of IMAGES alone, without a reference."""


class InceptionOptions(PreparationOptions):
    """Options of stages that compute Inception features."""

    neutral = frozenset({"device", "batch_size", "num_workers"})

    groups: ClassVar[Groups] = {
        "metrics": ("num",),
        "image preparation": ("preset",),
        "Inception": ("resize", "inception_weights"),
        "device and memory": ("device", "batch_size", "num_workers"),
    }  # fmt: skip

    preset: SizedPreset | None = Field(
        default=None,
        validate_default=True,
        description=(
            "preprocessing before Inception (default: none)\n"
            "cifar10, celeba64, lsun256 or imagenet256; default with statistics of preprocessed images: theirs"
        ),
    )
    num: int | None = Field(default=None, ge=1, description="use the first N images (default: all)")
    resize: Resize = Field(
        default="legacy",
        description=(
            "resize to 299x299 for fid and sfid\n"
            "legacy: as pytorch-fid; clean: as clean-fid; tensorflow: as torch-fidelity "
            "(inception_score, kid, precision and recall always use it)"
        ),
    )
    inception_weights: Path | None = Field(
        default=None, description="Inception weights, .pth or .safetensors (default: download)"
    )
    batch_size: int = Field(default=64, ge=1, description="images per forward pass")
    num_workers: int = Field(default=0, ge=0, description="processes that decode and resize images")
    device: str = Field(default="auto", description="torch device; auto: a GPU if there is one")

    @field_validator("preset")
    @classmethod
    def _has_a_size(cls, value: SizedPreset | None, info: ValidationInfo) -> SizedPreset | None:
        changed = [name for name in ("crop", "fit", "filter") if info.data.get(name) is not None]
        if value is None and changed and info.data.get("size") is None:
            raise ValueError(f"missing; {', '.join(changed)} need the size to resize to: set preset or size")
        return value


class StatsOptions(InceptionOptions):
    """Options of `stats`."""

    groups: ClassVar[Groups] = {"metrics": ("metrics",)}

    metrics: tuple[Literal["fid", "sfid"], ...] = Field(
        default=("fid",), min_length=1, description="metrics that the statistics are for"
    )


class EvaluateOptions(InceptionOptions):
    """Options of `evaluate`."""

    groups: ClassVar[Groups] = {
        "metrics": (
            "metrics", "num", "seed", "kid_subsets", "kid_subset_size", "inception_splits", "neighborhood",
            "lpips_network", "lpips_weights", "prompts", "clip_model",
        ),
    }  # fmt: skip

    metrics: tuple[Metric, ...] = Field(
        default=("ssim", "mse"),
        min_length=1,
        description=(
            "metrics to compute\n"
            "image pairs: ssim, mse, psnr, lpips; image sets: frechet_distance (digit features), fid, "
            "sfid, kid, precision, recall; IMAGES alone: inception_score, clip_score"
        ),
    )
    kid_subsets: int = Field(default=100, ge=1, description="kid: number of subsets")
    kid_subset_size: int = Field(default=1000, ge=2, description="kid: images per subset; each set needs as many")
    inception_splits: int = Field(default=10, ge=1, description="inception_score: number of splits for mean and std")
    neighborhood: int = Field(default=3, ge=1, description="precision, recall: number of nearest neighbors")
    seed: int = Field(default=2020, ge=0, description="kid, inception_score: seed of subsets and shuffle")
    lpips_network: Literal["alex", "vgg", "squeeze"] = Field(default="alex", description="lpips: backbone")
    lpips_weights: Path | None = Field(
        default=None, description="lpips: torchvision weights of the backbone (default: download)"
    )
    clip_model: str = Field(default="openai/clip-vit-large-patch14", description="clip_score: CLIP model")
    prompts: PromptSource | None = Field(
        default=None,
        validate_default=True,
        description=(
            "clip_score: file of prompts, one per line (default: none)\n"
            "line i, counted from 0, is the prompt of image i"
        ),
    )

    @field_validator("prompts")
    @classmethod
    def _come_with_clip_score(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is None and "clip_score" in info.data.get("metrics", ()):
            raise ValueError("missing; clip_score needs a text file with one prompt per line")
        return value
