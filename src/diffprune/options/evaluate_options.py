"""Options of `evaluate` and `stats`."""

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from diffprune.options.image_options import PreparationOptions, SizedPreset

Metric = Literal[
    "ssim", "mse", "psnr", "lpips", "frechet_distance", "fid", "sfid", "kid", "inception_score", "precision", "recall",
    "clip_score",
]  # fmt: skip
Resize = Literal["legacy", "clean", "tensorflow"]

PAIRED_METRICS = ("ssim", "mse", "psnr", "lpips")
"""Compare image i of one folder with image i of the other."""

MOMENT_METRICS = ("fid", "sfid")
"""Compare means and covariances: of these sets, statistics can stand in for the images."""

LONE_METRICS = ("inception_score", "clip_score")
"""Look at IMAGES alone."""


class InceptionOptions(PreparationOptions):
    """What every stage takes that turns images into Inception features."""

    neutral = frozenset({"device", "batch_size", "num_workers"})

    preset: SizedPreset | None = Field(
        default=None,
        validate_default=True,
        description="how images are prepared before Inception, on both sides (default: not at all; against statistics "
        "of prepared images, as those, which images of that size are already)",
    )
    num: int | None = Field(default=None, ge=1, description="use the first N of IMAGES; left out: all")
    resize: Resize = Field(
        default="legacy",
        description="how images reach Inception's 299x299 for fid and sfid: as pytorch-fid, as clean-fid, or as "
        "torch-fidelity and the original graph (inception_score, kid, precision and recall always do the last)",
    )
    inception_weights: Path | None = Field(
        default=None, description="file of Inception weights (.pth or .safetensors); left out: downloaded and checked"
    )
    batch_size: int = Field(default=64, ge=1, description="images per batch")
    num_workers: int = Field(default=0, ge=0, description="processes that decode and resize images")
    device: str = Field(default="auto", description="torch device; auto takes a GPU where there is one")

    @field_validator("preset")
    @classmethod
    def _has_a_size(cls, value: SizedPreset | None, info: ValidationInfo) -> SizedPreset | None:
        changed = [name for name in ("crop", "fit", "filter") if info.data.get(name) is not None]
        if value is None and changed and info.data.get("size") is None:
            raise ValueError(f"missing; {', '.join(changed)} change how images come to a size: give preset or size")
        return value


class StatsOptions(InceptionOptions):
    """Statistics of an image set, to compare others with."""

    metrics: tuple[Literal["fid", "sfid"], ...] = Field(
        default=("fid",), min_length=1, description="metrics that the statistics serve"
    )


class EvaluateOptions(InceptionOptions):
    """Comparing two sets of images."""

    metrics: tuple[Metric, ...] = Field(
        default=("ssim", "mse"),
        min_length=1,
        description="ssim, mse, psnr and lpips compare pairs of one image index; frechet_distance (on digit features), "
        "fid, sfid, kid, precision and recall compare sets; inception_score and clip_score take IMAGES alone",
    )
    kid_subsets: int = Field(default=100, ge=1, description="kid: number of subsets drawn")
    kid_subset_size: int = Field(default=1000, ge=2, description="kid: images per subset; each side needs as many")
    inception_splits: int = Field(
        default=10, ge=1, description="inception_score: parts its mean and std are taken over"
    )
    neighborhood: int = Field(default=3, ge=1, description="precision, recall: nearest neighbours that span a ball")
    seed: int = Field(default=2020, ge=0, description="kid, inception_score: seed of subsets and of the shuffle")
    lpips_network: Literal["alex", "vgg", "squeeze"] = Field(default="alex", description="lpips: backbone")
    lpips_weights: Path | None = Field(
        default=None, description="lpips: file of torchvision's backbone weights; left out: downloaded and checked"
    )
    clip_model: str = Field(
        default="openai/clip-vit-large-patch14", description="clip_score: CLIP model, a hub id or a folder"
    )
    prompts: Path | None = Field(
        default=None, validate_default=True, description="clip_score: text file; line i (from 0) is image i's prompt"
    )

    @field_validator("prompts")
    @classmethod
    def _come_with_clip_score(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is None and "clip_score" in info.data.get("metrics", ()):
            raise ValueError("clip_score compares images with their prompts; give a text file, one prompt a line")
        return value
