"""What denoiser classes are called with where the names of their parameters and configs do not tell."""

from collections.abc import Mapping
from typing import Any

import torch

from diffprune.architectures.example_inputs import derived_inputs as made
from diffprune.architectures.example_inputs import video_inputs as video_calls
from diffprune.architectures.example_inputs.derived_inputs import Inputs, Maker, Special, image, tokens


def labels(config: Any, make: Maker) -> Inputs:
    """T and class labels."""
    return {"timestep": make.whole(), "class_labels": make.whole()}


def packed(config: Any, make: Maker) -> Inputs:
    """x_t as tokens."""
    return {"hidden_states": tokens(config, make)}


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


def bria_fibo(config: Any, make: Maker) -> Inputs:
    """x_t as tokens, and the text layer by layer."""
    layers = config.num_layers + config.num_single_layers
    text = [make(made.TEXT_TOKENS, config.text_encoder_dim) for _ in range(layers)]
    return {**packed(config, make), "text_encoder_layers": text}


def bria_fibo2(config: Any, make: Maker) -> Inputs:
    """The text, and what each injection layer takes of it."""
    bundles = 1 + len(config.injection_layer_ids)
    return {"encoder_hidden_states": make(bundles, made.TEXT_TOKENS, config.cap_feat_dim)}


def ernie(config: Any, make: Maker) -> Inputs:
    """The text and its lengths."""
    return {"text_bth": make(made.TEXT_TOKENS, config.text_in_dim), "text_lens": make.whole() + made.TEXT_TOKENS}


def glm(config: Any, make: Maker) -> Inputs:
    """Tokens of a prior for each patch, and sizes."""
    patches = (made.SIDE // config.patch_size) ** 2
    prior = {"prior_token_id": make.whole(patches), "prior_token_drop": ~make.mask(patches)}
    return {**prior, "target_size": make(2), "crop_coords": make(2)}


def ideogram(config: Any, make: Maker) -> Inputs:
    """Text and image tokens in one sequence."""
    length = made.TEXT_TOKENS + made.SIDE
    return {
        "hidden_states": make(length, config.in_channels),
        "encoder_hidden_states": make(length, config.llm_features_dim),
        "position_ids": make.whole(length, 3),
        "segment_ids": make.whole(length),
        "indicator": make.whole(length),
    }


def krea(config: Any, make: Maker) -> Inputs:
    """x_t as tokens, the text layer by layer, and the positions of both."""
    length = made.TEXT_TOKENS + made.SIDE * made.SIDE // 4
    text = make(made.TEXT_TOKENS, config.num_text_layers, config.text_hidden_dim)
    return {**packed(config, make), "encoder_hidden_states": text, "position_ids": make.bare(length, 3)}


def qwen21(config: Any, make: Maker) -> Inputs:
    """x_t as tokens and its shape; no other images."""
    rows = made.SIDE // 2
    here = torch.zeros(make.batch, made.TEXT_TOKENS + rows * rows // 4, dtype=torch.bool, device=make.device)
    here[:, made.TEXT_TOKENS :] = True
    return {**packed(config, make), "img_shapes": [[(1, rows, rows)]] * make.batch, "img_mask": here}


def prior(config: Any, make: Maker) -> Inputs:
    """An image embedding, and the text's."""
    text = make(config.num_embeddings, config.embedding_dim)
    return {
        "hidden_states": make(config.embedding_dim),
        "proj_embedding": make(config.embedding_proj_dim or config.embedding_dim),
        "encoder_hidden_states": text,
    }


def cascade(config: Any, make: Maker) -> Inputs:
    """x_t, its noise level, and pooled text."""
    return {
        "sample": make(config.in_channels, made.SIDE // 2, made.SIDE // 2),
        "timestep_ratio": make(),
        "clip_text_pooled": make(1, config.clip_text_pooled_in_channels),
    }


def uvit(config: Any, make: Maker) -> Inputs:
    """Image tokens by id, pooled text and sizes."""
    told = config.micro_cond_embed_dim // config.micro_cond_encode_dim
    return {
        "input_ids": make.whole(*made.side(config)),
        "pooled_text_emb": make(config.cond_embed_dim),
        "micro_conds": make(told),
    }


CALLS: Mapping[str, Special] = {
    "DiTTransformer2DModel": labels,
    "PixArtTransformer2DModel": pixart,
    **dict.fromkeys(("CogVideoXTransformer3DModel", "ConsisIDTransformer3DModel"), video_calls.frames_first),
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
         "CosmosTransformer3DModel"), video_calls.moving,
    ),
    "AnyFlowTransformer3DModel": video_calls.video_frames_first,
    "AnyFlowFARTransformer3DModel": video_calls.any_flow_far,
    "Kandinsky3UNet": lambda config, make: {"encoder_attention_mask": make.mask(made.TEXT_TOKENS)},
    "Kandinsky6Transformer3DModel": video_calls.video_channels_last,
    "Kandinsky6SRTransformer3DModel": video_calls.video_channels_last,
    "Kandinsky5Transformer3DModel": video_calls.kandinsky5,
    "BriaFiboTransformer2DModel": bria_fibo,
    "BriaFibo2Transformer2DModel": bria_fibo2,
    "ErnieImageTransformer2DModel": ernie,
    "GlmImageTransformer2DModel": glm,
    "HunyuanVideo15Transformer3DModel": video_calls.hunyuan_video15,
    "HunyuanVideoFramepackTransformer3DModel": video_calls.framepack,
    "Ideogram4Transformer2DModel": ideogram,
    "JoyImageEditPlusTransformer3DModel": video_calls.joy_plus,
    "Krea2Transformer2DModel": krea,
    "MiniMaxH3Transformer3DModel": video_calls.minimax,
    "MiniMaxMusic3Transformer1DModel": lambda config, make: {
        "hidden_states": make(config.in_channels, made.SIDE),
        "encoder_hidden_states": make(made.SIDE, config.condition_dim),
    },
    "MiniMaxMusic3RVQDepthDecoder": lambda config, make: {"inputs_embeds": make(4, config.hidden_size)},
    "LongCatAudioDiTTransformer": lambda config, make: {"hidden_states": make(made.SIDE, config.latent_dim)},
    "NucleusMoEImageTransformer2DModel": lambda config, make: {
        **packed(config, make), "img_shapes": [(1, made.SIDE // 2, made.SIDE // 2)] * make.batch
    },
    "QwenImage21Transformer2DModel": qwen21,
    "PriorTransformer": prior,
    "StableAudioDiTModel": video_calls.stable_audio,
    "StableAudio3DiTModel": video_calls.stable_audio3,
    "T5FilmDecoder": video_calls.t5_film,
    "WanAnimateTransformer3DModel": video_calls.wan_animate,
    "WanVACETransformer3DModel": video_calls.wan_vace,
    "AceStepTransformer1DModel": video_calls.ace_step,
    "UNetSpatioTemporalConditionModel": video_calls.svd,
    "UNet3DConditionModel": video_calls.unet_video,
    "UNetMotionModel": video_calls.motion,
    "I2VGenXLUNet": video_calls.i2vgen,
    "StableCascadeUNet": cascade,
    "Cosmos3OmniTransformer": video_calls.cosmos3,
    "SanaWMTransformer3DModel": video_calls.masked_text,
    "SanaWMLTX2RefinerTransformer3DModel": video_calls.refiner,
    "UVit2DModel": uvit,
    "QwenImageTransformer2DModel": qwen,
    "LTXVideoTransformer3DModel": video_calls.ltx,
    "LTX2VideoTransformer3DModel": video_calls.ltx2,
    "ZImageTransformer2DModel": z_image,
    "HiDreamImageTransformer2DModel": hidream,
    "HunyuanDiT2DModel": hunyuan_dit,
    "OmniGenTransformer2DModel": omnigen,
    "LuminaNextDiT2DModel": lumina_next,
    "TransformerTemporalModel": lambda config, make: {"hidden_states": image(config, make), "num_frames": make.batch},
}  # fmt: skip
"""Class -> what it is called with besides what `derived_inputs` guesses."""
