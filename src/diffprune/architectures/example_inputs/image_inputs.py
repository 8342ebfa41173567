"""Example inputs of image denoisers that cannot be derived from names."""

from collections.abc import Mapping
from typing import Any

import torch

from diffprune.architectures.example_inputs.derived_inputs import (
    InputFactory,
    Inputs,
    Special,
    image,
    latent_size,
    tokens,
    zeros_of,
)


def labels(config: Any, make: InputFactory) -> Inputs:
    """Return integer t and class labels."""
    return {"timestep": make.integers(), "class_labels": make.integers()}


def packed(config: Any, make: InputFactory) -> Inputs:
    """Return x_t as patches."""
    return {"hidden_states": tokens(config, make)}


def pixart(config: Any, make: InputFactory) -> Inputs:
    """Return the size conditioning of the larger models."""
    sized = config.use_additional_conditions or (config.use_additional_conditions is None and config.sample_size == 128)
    sizes = {"resolution": make(2), "aspect_ratio": make(1)}
    return {"added_cond_kwargs": sizes if sized else {"resolution": None, "aspect_ratio": None}}


def qwen(config: Any, make: InputFactory) -> Inputs:
    """Return x_t as patches, and its shape in frames, rows and columns."""
    return {**packed(config, make), "img_shapes": [[(1, make.side // 2, make.side // 2)]] * make.batch}


def z_image(config: Any, make: InputFactory) -> Inputs:
    """Return lists of images and captions."""
    size = make.side
    return {
        "x": [make.unbatched(config.in_channels, 1, size, size) for _ in range(make.batch)],
        "t": make(),
        "cap_feats": [make.unbatched(make.text_tokens, config.cap_feat_dim) for _ in range(make.batch)],
    }


def hidream(config: Any, make: InputFactory) -> Inputs:
    """Return text tokens of two encoders, those of the second per layer."""
    widths = config.caption_channels
    layers = max(config.llama_layers) + 1
    return {
        "timesteps": make(),
        "encoder_hidden_states_t5": make(make.text_tokens, widths[0]),
        "encoder_hidden_states_llama3": torch.stack([make(make.text_tokens, widths[1])] * layers),
        "pooled_embeds": make(config.text_emb_dim),
    }


def hunyuan_dit(config: Any, make: InputFactory) -> Inputs:
    """Return text tokens of two encoders, sizes and a style."""
    return {
        "encoder_hidden_states": make(config.text_len, config.cross_attention_dim),
        "text_embedding_mask": make.mask(config.text_len),
        "encoder_hidden_states_t5": make(config.text_len_t5, config.cross_attention_dim_t5),
        "text_embedding_mask_t5": make.mask(config.text_len_t5),
        "image_meta_size": make(6),
        "style": make.integers(),
    }


def omnigen(config: Any, make: InputFactory) -> Inputs:
    """Return text as token ids, without input images."""
    length = make.text_tokens + 1 + (make.side // config.patch_size) ** 2
    return {
        "input_ids": make.integers(make.text_tokens),
        "input_img_latents": [],
        "input_image_sizes": {},
        "attention_mask": make.integers(length, length) + 1,
        "position_ids": torch.arange(length, device=make.device).expand(make.batch, length),
    }


def lumina_next(config: Any, make: InputFactory) -> Inputs:
    """Return the text mask and the rotary table."""
    side, pairs = latent_size(config)[0] // config.patch_size, config.hidden_size // config.num_attention_heads // 2
    table = torch.ones(side, side, pairs, dtype=torch.complex64, device=make.device)
    mask = make.mask(make.text_tokens)
    return {"encoder_mask": mask, "image_rotary_emb": table, "cross_attention_kwargs": {}}


def bria_fibo(config: Any, make: InputFactory) -> Inputs:
    """Return x_t as patches, and text tokens per layer."""
    layers = config.num_layers + config.num_single_layers
    text = [make(make.text_tokens, config.text_encoder_dim) for _ in range(layers)]
    return {**packed(config, make), "text_encoder_layers": text}


def bria_fibo2(config: Any, make: InputFactory) -> Inputs:
    """Return the text tokens of the input and of each injection layer."""
    num_inputs = 1 + len(config.injection_layer_ids)
    return {"encoder_hidden_states": make(num_inputs, make.text_tokens, config.cap_feat_dim)}


def ernie(config: Any, make: InputFactory) -> Inputs:
    """Return text tokens and their lengths."""
    return {"text_bth": make(make.text_tokens, config.text_in_dim), "text_lens": make.integers() + make.text_tokens}


def glm(config: Any, make: InputFactory) -> Inputs:
    """Return prior tokens per patch, and sizes."""
    patches = (make.side // config.patch_size) ** 2
    prior = {"prior_token_id": make.integers(patches), "prior_token_drop": ~make.mask(patches)}
    return {**prior, "target_size": make(2), "crop_coords": make(2)}


def ideogram(config: Any, make: InputFactory) -> Inputs:
    """Return text and image tokens in one sequence."""
    length = make.text_tokens + make.side
    return {
        "hidden_states": make(length, config.in_channels),
        "encoder_hidden_states": make(length, config.llm_features_dim),
        "position_ids": make.integers(length, 3),
        "segment_ids": make.integers(length),
        "indicator": make.integers(length),
    }


def krea(config: Any, make: InputFactory) -> Inputs:
    """Return x_t as patches, text tokens per layer, and positions of both."""
    length = make.text_tokens + make.side * make.side // 4
    text = make(make.text_tokens, config.num_text_layers, config.text_hidden_dim)
    return {**packed(config, make), "encoder_hidden_states": text, "position_ids": make.unbatched(length, 3)}


def qwen21(config: Any, make: InputFactory) -> Inputs:
    """Return x_t as patches, its shape, and a mask of its tokens; no input images."""
    rows = make.side // 2
    is_image = torch.zeros(make.batch, make.text_tokens + rows * rows // 4, dtype=torch.bool, device=make.device)
    is_image[:, make.text_tokens :] = True
    return {**packed(config, make), "img_shapes": [[(1, rows, rows)]] * make.batch, "img_mask": is_image}


def prior(config: Any, make: InputFactory) -> Inputs:
    """Return an image embedding and text embeddings."""
    text = make(config.num_embeddings, config.embedding_dim)
    return {
        "hidden_states": make(config.embedding_dim),
        "proj_embedding": make(config.embedding_proj_dim or config.embedding_dim),
        "encoder_hidden_states": text,
    }


def cascade(config: Any, make: InputFactory) -> Inputs:
    """Return x_t, its noise level, and pooled text."""
    return {
        "sample": make(config.in_channels, make.side // 2, make.side // 2),
        "timestep_ratio": make(),
        "clip_text_pooled": make(1, config.clip_text_pooled_in_channels),
    }


def uvit(config: Any, make: InputFactory) -> Inputs:
    """Return image token ids, pooled text and sizes."""
    num_conditions = config.micro_cond_embed_dim // config.micro_cond_encode_dim
    return {
        "input_ids": make.integers(*latent_size(config)),
        "pooled_text_emb": make(config.cond_embed_dim),
        "micro_conds": make(num_conditions),
    }


IMAGE_INPUTS: Mapping[str, Special] = {
    **dict.fromkeys(
        ("FluxTransformer2DModel", "Flux2Transformer2DModel", "Flux3Transformer2DModel", "ChromaTransformer2DModel",
         "OvisImageTransformer2DModel", "LongCatImageTransformer2DModel", "BriaTransformer2DModel"), packed,
    ),
    **dict.fromkeys(
        ("CogView3PlusTransformer2DModel", "CogView4Transformer2DModel"),
        zeros_of(original_size=(2,), target_size=(2,), crop_coords=(2,)),
    ),
    "BriaFibo2Transformer2DModel": bria_fibo2,
    "BriaFiboTransformer2DModel": bria_fibo,
    "DiTTransformer2DModel": labels,
    "ErnieImageTransformer2DModel": ernie,
    "GlmImageTransformer2DModel": glm,
    "HiDreamImageTransformer2DModel": hidream,
    "HunyuanDiT2DModel": hunyuan_dit,
    "Ideogram4Transformer2DModel": ideogram,
    "Kandinsky3UNet": lambda config, make: {"encoder_attention_mask": make.mask(make.text_tokens)},
    "Krea2Transformer2DModel": krea,
    "LuminaNextDiT2DModel": lumina_next,
    "NucleusMoEImageTransformer2DModel": lambda config, make: {
        **packed(config, make), "img_shapes": [(1, make.side // 2, make.side // 2)] * make.batch
    },
    "OmniGenTransformer2DModel": omnigen,
    "PixArtTransformer2DModel": pixart,
    "PriorTransformer": prior,
    "QwenImage21Transformer2DModel": qwen21,
    "QwenImageTransformer2DModel": qwen,
    "StableCascadeUNet": cascade,
    "TransformerTemporalModel": lambda config, make: {"hidden_states": image(config, make), "num_frames": make.batch},
    "UVit2DModel": uvit,
    "ZImageTransformer2DModel": z_image,
}  # fmt: skip
"""Class -> the inputs that `derived_inputs` cannot derive."""
