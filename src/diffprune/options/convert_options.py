"""Options of `convert`."""

from typing import ClassVar, Literal

from pydantic import Field

from diffprune.options.option_set import Groups, Options


class ConvertOptions(Options):
    """Options of `convert`, which makes a diffusers folder of a checkpoint of another system."""

    groups: ClassVar[Groups] = {"checkpoint": ("arch", "weights", "heads", "sha256")}

    arch: str | None = Field(
        default=None,
        description=(
            "architecture (default for ddpm: detected by the shapes)\n"
            "ddpm: ddpm-cifar10, ddpm-celeba64, ddpm-lsun256 or config.json; ldm: celebahq-256, "
            "cin256-v2 or the config (YAML); shapes: folder, hub id or config.json of the unpruned model"
        ),
    )
    weights: Literal["ema", "raw"] | None = Field(
        default=None, description="weights to read (default: ema if present, else raw)"
    )
    heads: int | None = Field(
        default=None, ge=1, description="shapes: heads per attention (default: the head width is kept)"
    )
    sha256: str | None = Field(
        default=None,
        pattern="^[0-9a-fA-F]{64}$",
        description=("SHA-256 that FILE must have (default: no check)\nrequired for a URL"),
    )
