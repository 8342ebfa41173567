"""Architectures of latent-diffusion checkpoints, published or from a research config (YAML), as diffusers configs.

Source: Rombach et al. 2022, appendix E, and the configs published with the checkpoints.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from diffprune.errors import ModelError
from diffprune.options import explain

_STRICT = ConfigDict(frozen=True, extra="forbid")
_LOOSE = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class UNetParams(BaseModel):
    """Config of the denoiser; entries with a single allowed value are those that diffusers supports no other way."""

    model_config = _STRICT

    image_size: PositiveInt
    in_channels: PositiveInt
    out_channels: PositiveInt
    model_channels: PositiveInt
    attention_resolutions: tuple[PositiveInt, ...]
    num_res_blocks: PositiveInt
    channel_mult: tuple[PositiveInt, ...]
    num_heads: PositiveInt | Literal[-1] = -1
    num_head_channels: PositiveInt | Literal[-1] = -1
    context_dim: PositiveInt | None = None
    use_spatial_transformer: bool = False
    transformer_depth: PositiveInt = 1
    dropout: float = 0.0
    use_checkpoint: bool = False
    legacy: bool = True
    conv_resample: Literal[True] = True
    use_scale_shift_norm: Literal[False] = False
    resblock_updown: Literal[False] = False
    use_new_attention_order: Literal[False] = False
    use_fp16: Literal[False] = False
    dims: Literal[2] = 2
    num_classes: None = None


class AutoencoderParams(BaseModel):
    """Config of the first stage's layers."""

    model_config = _STRICT

    z_channels: PositiveInt
    resolution: PositiveInt
    in_channels: PositiveInt
    out_ch: PositiveInt
    ch: PositiveInt
    ch_mult: tuple[PositiveInt, ...]
    num_res_blocks: PositiveInt
    attn_resolutions: tuple[()] = ()
    dropout: float = 0.0
    double_z: Literal[False] = False


class FirstStageParams(BaseModel):
    """Config of the first stage, a VQ autoencoder."""

    model_config = _LOOSE

    embed_dim: PositiveInt
    n_embed: PositiveInt
    ddconfig: AutoencoderParams


class ClassEmbedderParams(BaseModel):
    """Config of the learned class embedding; its last class is the null class."""

    model_config = _LOOSE

    n_classes: int = Field(ge=2)
    embed_dim: PositiveInt


class _UNet(BaseModel):
    model_config = _LOOSE

    params: UNetParams


class _FirstStage(BaseModel):
    model_config = _LOOSE

    target: Literal["ldm.models.autoencoder.VQModelInterface"]
    params: FirstStageParams


class _ClassEmbedder(BaseModel):
    model_config = _LOOSE

    target: Literal["ldm.modules.encoders.modules.ClassEmbedder"]
    params: ClassEmbedderParams


class LatentDiffusion(BaseModel):
    """Config of a latent-diffusion model, with the names of the research code."""

    model_config = _LOOSE

    linear_start: float = Field(gt=0)
    linear_end: float = Field(gt=0)
    timesteps: PositiveInt = 1000
    scale_factor: float = Field(default=1.0, gt=0)
    parameterization: Literal["eps"] = "eps"
    unet_config: _UNet
    first_stage_config: _FirstStage
    cond_stage_config: Literal["__is_unconditional__"] | _ClassEmbedder

    @model_validator(mode="after")
    def _check_conditioning(self) -> "LatentDiffusion":
        unet = self.unet_config.params
        embedder = self.class_embedder
        if embedder is None:
            if unet.use_spatial_transformer or unet.num_head_channels == -1:
                raise ValueError("an unconditional model has num_head_channels and no spatial transformer")
        elif not unet.use_spatial_transformer or unet.context_dim != embedder.embed_dim:
            raise ValueError("a class-conditional model has a spatial transformer with context_dim = embed_dim")
        return self

    @property
    def class_embedder(self) -> ClassEmbedderParams | None:
        """Config of the class embedding; None for an unconditional model."""
        return None if isinstance(self.cond_stage_config, str) else self.cond_stage_config.params

    def unet(self) -> dict[str, Any]:
        """Return the denoiser's diffusers config."""
        params = self.unet_config.params
        levels = len(params.channel_mult)
        widths = [params.model_channels * factor for factor in params.channel_mult]
        attends = [2**level in params.attention_resolutions for level in range(levels)]
        shared = {
            "sample_size": params.image_size,
            "in_channels": params.in_channels,
            "out_channels": params.out_channels,
            "block_out_channels": widths,
            "layers_per_block": params.num_res_blocks,
            "flip_sin_to_cos": True,
            "freq_shift": 0,
            "downsample_padding": 1,
            "norm_eps": 1e-5,
            "norm_num_groups": 32,
        }
        kind = "Attn" if self.class_embedder is None else "CrossAttn"
        down = [f"{kind if attend else ''}DownBlock2D" for attend in attends]
        up = [f"{kind if attend else ''}UpBlock2D" for attend in reversed(attends)]
        shared |= {"down_block_types": down, "up_block_types": up}
        if self.class_embedder is None:
            return {**shared, "attention_head_dim": params.num_head_channels}
        return {
            **shared,
            "cross_attention_dim": params.context_dim,
            "transformer_layers_per_block": params.transformer_depth,
            "attention_head_dim": self._heads(widths),  # the number of heads, in spite of its name in diffusers
        }

    def _heads(self, widths: list[int]) -> int | list[int]:
        params = self.unet_config.params
        if params.num_head_channels == -1:
            return params.num_heads
        return [width // params.num_head_channels for width in widths]

    def autoencoder(self, scale_factor: float) -> dict[str, Any]:
        """Return the first stage's diffusers config. scale_factor: factor of its latents in the diffusion process."""
        params = self.first_stage_config.params
        layers = params.ddconfig
        levels = len(layers.ch_mult)
        return {
            "in_channels": layers.in_channels,
            "out_channels": layers.out_ch,
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "block_out_channels": [layers.ch * factor for factor in layers.ch_mult],
            "layers_per_block": layers.num_res_blocks,
            "latent_channels": layers.z_channels,
            "sample_size": layers.resolution,
            "num_vq_embeddings": params.n_embed,
            "vq_embed_dim": params.embed_dim,
            "norm_num_groups": 32,
            "scaling_factor": scale_factor,
        }

    def scheduler(self) -> dict[str, Any]:
        """Return the config of the DDIM scheduler: linear in the square root of beta (`linear` in the research code).

        The last step of the research sampler ends at alpha_bar of timestep 0, not at 1, and its grid starts at 1.
        """
        return {
            "num_train_timesteps": self.timesteps,
            "beta_start": self.linear_start,
            "beta_end": self.linear_end,
            "beta_schedule": "scaled_linear",
            "clip_sample": False,
            "set_alpha_to_one": False,
            "steps_offset": 1,
        }


def _published(unet: Mapping[str, Any], cond_stage: Any) -> LatentDiffusion:
    """Add the schedule and the VQ-f4 first stage, which both published models share."""
    shared = {"image_size": 64, "in_channels": 3, "out_channels": 3, "attention_resolutions": (8, 4, 2)}
    layers = {"z_channels": 3, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128, "ch_mult": (1, 2, 4)}
    return LatentDiffusion.model_validate(
        {
            "linear_start": 0.0015,
            "linear_end": 0.0195,
            "unet_config": {"params": {**shared, "num_res_blocks": 2, **unet}},
            "first_stage_config": {
                "target": "ldm.models.autoencoder.VQModelInterface",
                "params": {"embed_dim": 3, "n_embed": 8192, "ddconfig": {**layers, "num_res_blocks": 2}},
            },
            "cond_stage_config": cond_stage,
        }
    )


PUBLISHED: Mapping[str, LatentDiffusion] = {
    "celebahq-256": _published(
        {"model_channels": 224, "channel_mult": (1, 2, 3, 4), "num_head_channels": 32}, "__is_unconditional__"
    ),
    "cin256-v2": _published(
        {
            "model_channels": 192,
            "channel_mult": (1, 2, 3, 5),
            "num_heads": 1,
            "use_spatial_transformer": True,
            "context_dim": 512,
        },
        {
            "target": "ldm.modules.encoders.modules.ClassEmbedder",
            "params": {"n_classes": 1001, "embed_dim": 512},
        },
    ),
}
"""Published checkpoints: CelebA-HQ, unconditional; ImageNet with 1000 classes and a null class."""


def read_architecture(name: str) -> LatentDiffusion:
    """Return a published architecture, or that of a research config file; raise ModelError for anything else."""
    if name in PUBLISHED:
        return PUBLISHED[name]
    path = Path(name)
    if not path.is_file():
        raise ModelError(
            f"no architecture {name!r}; expected one of {', '.join(PUBLISHED)}, or the path of the checkpoint's config "
            "(YAML)"
        )
    try:
        value = yaml.safe_load(path.read_text())
        params = value["model"]["params"]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ModelError(f"{name} is not a latent-diffusion config: expected YAML with model.params") from error
    try:
        return LatentDiffusion.model_validate(params)
    except ValidationError as error:
        lines = "\n".join(explain(error, LatentDiffusion))
        raise ModelError(f"{name} describes a model that is not supported:\n{lines}") from None
