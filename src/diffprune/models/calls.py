"""What denoiser classes are called with where the names of their parameters and configs do not tell."""

from collections.abc import Mapping
from typing import Any

import torch

from diffprune.models import inputs as made
from diffprune.models.inputs import Inputs, Maker, Special, image, tokens, video


def labels(config: Any, make: Maker) -> Inputs:
    """T and class labels."""
    return {"timestep": make.whole(), "class_labels": make.whole()}


def packed(config: Any, make: Maker) -> Inputs:
    """x_t as tokens."""
    return {"hidden_states": tokens(config, make)}


def moving(config: Any, make: Maker) -> Inputs:
    """x_t as a video."""
    return {"hidden_states": video(config, make)}


def frames_first(config: Any, make: Maker) -> Inputs:
    """x_t as a video (N, F, C, H, W), of the size in the config where it is bound to it, and the rotary table."""
    height, width = config.sample_height, config.sample_width
    frames = (config.sample_frames - 1) // config.temporal_compression_ratio + 1
    if config.use_rotary_positional_embeddings and getattr(config, "patch_size_t", None):
        frames += frames % config.patch_size_t
    inputs: Inputs = {"hidden_states": make(frames, config.in_channels, height, width), "timestep": make.whole()}
    inputs["encoder_hidden_states"] = make(config.max_text_seq_length, config.text_embed_dim)
    if config.use_rotary_positional_embeddings:
        patches = (height // config.patch_size) * (width // config.patch_size)
        steps = frames // (getattr(config, "patch_size_t", None) or 1)
        table = make.bare(steps * patches, config.attention_head_dim)
        inputs["image_rotary_emb"] = (table, table)
    if getattr(config, "ofs_embed_dim", None):
        inputs["ofs"] = make()
    return inputs


def pixart(config: Any, make: Maker) -> Inputs:
    """The sizes that the larger models are told."""
    told = config.use_additional_conditions or (config.use_additional_conditions is None and config.sample_size == 128)
    sizes = {"resolution": make(2), "aspect_ratio": make(1)}
    return {"added_cond_kwargs": sizes if told else {"resolution": None, "aspect_ratio": None}}


def cropped(config: Any, make: Maker) -> Inputs:
    """The sizes before and after a crop."""
    return {"original_size": make(2), "target_size": make(2), "crop_coords": make(2)}


def qwen(config: Any, make: Maker) -> Inputs:
    """x_t as tokens, and its shape in frames, rows and columns."""
    return {**packed(config, make), "img_shapes": [[(1, made.SIDE // 2, made.SIDE // 2)]] * make.batch}


def ltx(config: Any, make: Maker) -> Inputs:
    """x_t as the tokens of a video, and its shape."""
    shape = {"num_frames": made.FRAMES, "height": made.SIDE // 2, "width": made.SIDE // 2}
    length = made.FRAMES * (made.SIDE // 2) ** 2
    return {"hidden_states": make(length, config.in_channels), **shape}


def ltx2(config: Any, make: Maker) -> Inputs:
    """The tokens of a video and of its sound."""
    sound = {"audio_hidden_states": make(8, config.audio_in_channels), "audio_num_frames": 8}
    heard = {"audio_encoder_hidden_states": make(made.TEXT_TOKENS, config.caption_channels)}
    return {**ltx(config, make), **sound, **heard}


def z_image(config: Any, make: Maker) -> Inputs:
    """Lists of images and captions."""
    size = made.SIDE
    return {
        "x": [make.bare(config.in_channels, 1, size, size) for _ in range(make.batch)],
        "t": make(),
        "cap_feats": [make.bare(made.TEXT_TOKENS, config.cap_feat_dim) for _ in range(make.batch)],
    }


def hidream(config: Any, make: Maker) -> Inputs:
    """Text tokens of two encoders, one of them layer by layer."""
    widths = config.caption_channels
    layers = max(config.llama_layers) + 1
    return {
        "timesteps": make(),
        "encoder_hidden_states_t5": make(made.TEXT_TOKENS, widths[0]),
        "encoder_hidden_states_llama3": torch.stack([make(made.TEXT_TOKENS, widths[1])] * layers),
        "pooled_embeds": make(config.text_emb_dim),
    }


def hunyuan_dit(config: Any, make: Maker) -> Inputs:
    """Text of two encoders, sizes and a style."""
    return {
        "encoder_hidden_states": make(config.text_len, config.cross_attention_dim),
        "text_embedding_mask": make.mask(config.text_len),
        "encoder_hidden_states_t5": make(config.text_len_t5, config.cross_attention_dim_t5),
        "text_embedding_mask_t5": make.mask(config.text_len_t5),
        "image_meta_size": make(6),
        "style": make.whole(),
    }


def omnigen(config: Any, make: Maker) -> Inputs:
    """Text as token ids, without input images."""
    length = made.TEXT_TOKENS + 1 + (made.SIDE // config.patch_size) ** 2
    return {
        "input_ids": make.whole(made.TEXT_TOKENS),
        "input_img_latents": [],
        "input_image_sizes": {},
        "attention_mask": make.whole(length, length) + 1,
        "position_ids": torch.arange(length, device=make.device).expand(make.batch, length),
    }


def lumina_next(config: Any, make: Maker) -> Inputs:
    """The mask of the text and the rotary table."""
    side, pairs = made.side(config)[0] // config.patch_size, config.hidden_size // config.num_attention_heads // 2
    table = torch.ones(side, side, pairs, dtype=torch.complex64, device=make.device)
    mask = make.mask(made.TEXT_TOKENS)
    return {"encoder_mask": mask, "image_rotary_emb": table, "cross_attention_kwargs": {}}


CALLS: Mapping[str, Special] = {
    "DiTTransformer2DModel": labels,
    "PixArtTransformer2DModel": pixart,
    **dict.fromkeys(("CogVideoXTransformer3DModel", "ConsisIDTransformer3DModel"), frames_first),
    **dict.fromkeys(("CogView3PlusTransformer2DModel", "CogView4Transformer2DModel"), cropped),
    **dict.fromkeys(
        ("FluxTransformer2DModel", "Flux2Transformer2DModel", "Flux3Transformer2DModel", "ChromaTransformer2DModel",
         "OvisImageTransformer2DModel", "LongCatImageTransformer2DModel", "BriaTransformer2DModel"), packed,
    ),
    **dict.fromkeys(
        ("WanTransformer3DModel", "SkyReelsV2Transformer3DModel", "ChronoEditTransformer3DModel",
         "HeliosTransformer3DModel", "HunyuanVideoTransformer3DModel", "MochiTransformer3DModel",
         "AllegroTransformer3DModel", "LatteTransformer3DModel", "SanaVideoTransformer3DModel",
         "EasyAnimateTransformer3DModel", "JoyImageEditTransformer3DModel", "MotifVideoTransformer3DModel",
         "CosmosTransformer3DModel"), moving,
    ),
    "QwenImageTransformer2DModel": qwen,
    "LTXVideoTransformer3DModel": ltx,
    "LTX2VideoTransformer3DModel": ltx2,
    "ZImageTransformer2DModel": z_image,
    "HiDreamImageTransformer2DModel": hidream,
    "HunyuanDiT2DModel": hunyuan_dit,
    "OmniGenTransformer2DModel": omnigen,
    "LuminaNextDiT2DModel": lumina_next,
    "TransformerTemporalModel": lambda config, make: {"hidden_states": image(config, make), "num_frames": make.batch},
}  # fmt: skip
"""Class -> what it is called with besides what `derived_inputs` guesses."""
