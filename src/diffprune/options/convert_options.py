"""Options of `convert`."""

from typing import Literal

from pydantic import Field

from diffprune.options.option_set import Options


class ConvertOptions(Options):
    """Bringing a checkpoint of another system into diffusers form."""

    arch: str | None = Field(
        default=None,
        description="ddpm: ddpm-cifar10, ddpm-celeba64, ddpm-lsun256 (default: found by the shapes) or a config.json; "
        "ldm: celebahq-256, cin256-v2 or the research config (YAML); shapes: the unpruned MODEL or its config.json",
    )
    weights: Literal["ema", "raw"] | None = Field(
        default=None, description="which weights of the file (default: ema where it has them, else raw)"
    )
    heads: int | None = Field(
        default=None, ge=1, description="shapes: heads of each attention (default: heads keep their width)"
    )
    sha256: str | None = Field(
        default=None, pattern="^[0-9a-fA-F]{64}$", description="checksum that FILE must have; an address needs one"
    )
