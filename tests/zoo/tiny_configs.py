"""Tiny configurations of the denoiser classes of diffusers: two or three heads, two blocks of each kind."""

from typing import Any

HEADS: dict[str, Any] = {"num_attention_heads": 3, "attention_head_dim": 8}
BLOCKS: dict[str, Any] = {**HEADS, "num_layers": 2}
UNET: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 8,
}
FLUX: dict[str, Any] = {**BLOCKS, "num_single_layers": 2, "in_channels": 4, "joint_attention_dim": 12}

CONFIGS: dict[str, dict[str, Any]] = {
    "UNet2DModel": {
        **UNET,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 8,
    },
    "UNet2DConditionModel": {
        **UNET,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 12,
        "attention_head_dim": 4,
    },
    "DiTTransformer2DModel": {
        **BLOCKS,
        "attention_head_dim": 32,
        "sample_size": 8,
        "norm_num_groups": 4,
        "num_embeds_ada_norm": 10,
    },
    "PixArtTransformer2DModel": {
        **BLOCKS,
        "sample_size": 8,
        "norm_num_groups": 4,
        "cross_attention_dim": 24,
        "caption_channels": 12,
        "num_embeds_ada_norm": 10,
    },
    "SD3Transformer2DModel": {
        **BLOCKS,
        "sample_size": 8,
        "in_channels": 4,
        "joint_attention_dim": 12,
        "caption_projection_dim": 24,
        "pooled_projection_dim": 10,
        "pos_embed_max_size": 8,
        "dual_attention_layers": (0,),
        "qk_norm": "rms_norm",
    },
    "FluxTransformer2DModel": {
        **FLUX,
        "pooled_projection_dim": 10,
        "axes_dims_rope": (2, 2, 4),
        "guidance_embeds": True,
    },
    "Flux2Transformer2DModel": {**FLUX, "timestep_guidance_channels": 16, "axes_dims_rope": (2, 2, 2, 2)},
    "ChromaTransformer2DModel": {
        **FLUX,
        "axes_dims_rope": (2, 2, 4),
        "approximator_num_channels": 8,
        "approximator_hidden_dim": 16,
        "approximator_layers": 1,
    },
    "OvisImageTransformer2DModel": {**FLUX, "out_channels": 4, "axes_dims_rope": (2, 2, 4)},
    "LongCatImageTransformer2DModel": {**FLUX, "pooled_projection_dim": 10, "axes_dims_rope": (2, 2, 4)},
    "BriaTransformer2DModel": {**FLUX, "axes_dims_rope": (2, 2, 4)},
}
"""Class -> its tiny configuration; classes that are not named are not covered yet."""
