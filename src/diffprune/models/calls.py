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


def video_frames_first(config: Any, make: Maker) -> Inputs:
    """x_t as a video (N, F, C, H, W), and two times for each of its frames."""
    frames = make(made.FRAMES, config.in_channels, made.SIDE // 2, made.SIDE // 2)
    return {"hidden_states": frames, "timestep": make(made.FRAMES), "r_timestep": make(made.FRAMES)}


def video_channels_last(config: Any, make: Maker) -> Inputs:
    """x_t as a video (N, F, H, W, C), with the positions of its patches and of the text."""
    size = made.SIDE if not hasattr(config, "in_text_dim") else made.SIDE // 2
    doubled = getattr(
        config, "visual_cond", not hasattr(config, "in_text_dim")
    )  # the condition and its mask beside x_t
    channels = config.in_visual_dim + (config.in_visual_dim + 1 if doubled else 0)
    inputs: Inputs = {"hidden_states": make(made.FRAMES, size, size, channels)}
    if hasattr(config, "in_text_dim2"):
        inputs["pooled_projections"] = make(config.in_text_dim2)
        lengths = (made.FRAMES, size // config.patch_size[1], size // config.patch_size[2])
        inputs["visual_rope_pos"] = tuple(torch.arange(length, device=make.device) for length in lengths)
    return inputs


def kandinsky5(config: Any, make: Maker) -> Inputs:
    """As above, and the positions of the text."""
    return {**video_channels_last(config, make), "text_rope_pos": torch.arange(made.TEXT_TOKENS, device=make.device)}


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


def hunyuan_video15(config: Any, make: Maker) -> Inputs:
    """x_t as a video, a second text and an image."""
    second = {"encoder_hidden_states_2": make(made.TEXT_TOKENS, config.text_embed_2_dim)}
    masks = {"encoder_attention_mask_2": make.mask(made.TEXT_TOKENS)}
    return {**moving(config, make), **second, **masks, "image_embeds": make(made.TEXT_TOKENS, config.image_embed_dim)}


def framepack(config: Any, make: Maker) -> Inputs:
    """x_t as a video, an image, and no history."""
    indices = torch.arange(made.FRAMES, device=make.device)
    first = make(config.in_channels, 1, made.SIDE // 2, made.SIDE // 2)
    clean: Inputs = {"latents_clean": first, "indices_latents_clean": indices[:1]}
    for factor in (2, 4):
        history = make(config.in_channels, factor, made.SIDE // 2, made.SIDE // 2)
        clean[f"latents_history_{factor}x"] = history
        clean[f"indices_latents_history_{factor}x"] = torch.arange(factor, device=make.device)
    clean = clean if config.has_clean_x_embedder else {}
    image = make(made.TEXT_TOKENS, config.image_proj_dim) if config.has_image_proj else None
    return {**moving(config, make), "image_embeds": image, "indices_latents": indices, **clean}


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


def joy_plus(config: Any, make: Maker) -> Inputs:
    """x_t as a list of patches, and the shape they come from."""
    frames, rows, columns = made.FRAMES, made.SIDE // 2, made.SIDE // 2
    patches = make(frames * rows * columns, config.in_channels, *config.patch_size)
    return {"hidden_states": patches, "shape_list": [[(frames, rows, columns)]] * make.batch}


def krea(config: Any, make: Maker) -> Inputs:
    """x_t as tokens, the text layer by layer, and the positions of both."""
    length = made.TEXT_TOKENS + made.SIDE * made.SIDE // 4
    text = make(made.TEXT_TOKENS, config.num_text_layers, config.text_hidden_dim)
    return {**packed(config, make), "encoder_hidden_states": text, "position_ids": make.bare(length, 3)}


def minimax(config: Any, make: Maker) -> Inputs:
    """Text, video and sound in one sequence."""
    lengths = {"text_indices": made.TEXT_TOKENS, "video_indices": made.FRAMES * made.SIDE, "audio_indices": 8}
    total = sum(lengths.values())
    parts = torch.arange(total, device=make.device).split(list(lengths.values()))
    patch = config.in_channels * config.patch_size[0] * config.patch_size[1] * config.patch_size[2]
    nowhere = torch.zeros(total, dtype=torch.long, device=make.device)
    return {
        "hidden_states": make(lengths["video_indices"], patch),
        "audio_hidden_states": make(8, config.audio_in_channels),
        "timestep": make.bare(1),
        "timestep_indices": nowhere,
        "token_tags": nowhere,
        "position_ids": make.bare(total, 3),
        **dict(zip(lengths, parts, strict=True)),
    }


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


def stable_audio(config: Any, make: Maker) -> Inputs:
    """x_t as a sound (N, C, L), text, and the rotary table of both."""
    table = make.bare(made.SIDE + 1, config.attention_head_dim // 2)
    given = {"hidden_states": make(config.in_channels, made.SIDE), "rotary_embedding": (table, table)}
    return {**given, "global_hidden_states": make(1, config.global_states_input_dim)}


def stable_audio3(config: Any, make: Maker) -> Inputs:
    """x_t as a sound (N, C, L), and what holds for all of it."""
    given = {"hidden_states": make(config.io_channels, made.SIDE)}
    return {**given, "global_hidden_states": make(config.global_cond_dim)}


def t5_film(config: Any, make: Maker) -> Inputs:
    """Encoded notes with their mask, x_t, and t."""
    notes = (make(made.TEXT_TOKENS, config.d_model), make(made.TEXT_TOKENS) + 1)
    noisy = make(config.targets_length, config.input_dims)
    return {"encodings_and_masks": [notes], "decoder_input_tokens": noisy, "decoder_noise_time": make()}


def wan_animate(config: Any, make: Maker) -> Inputs:
    """x_t as a video, poses and a face."""
    pose = make(config.latent_channels, made.FRAMES - 1, made.SIDE // 2, made.SIDE // 2)
    face = make(3, 4 * (made.FRAMES - 1) + 1 - 4, config.motion_encoder_size, config.motion_encoder_size)
    image = (
        {} if config.image_dim is None else {"encoder_hidden_states_image": make(made.TEXT_TOKENS, config.image_dim)}
    )
    return {**moving(config, make), "pose_hidden_states": pose, "face_pixel_values": face, **image}


def wan_vace(config: Any, make: Maker) -> Inputs:
    """x_t as a video, and its controls."""
    control = make(config.vace_in_channels, made.FRAMES, made.SIDE // 2, made.SIDE // 2)
    return {**moving(config, make), "control_hidden_states": control}


def ace_step(config: Any, make: Maker) -> Inputs:
    """x_t as a sound (N, L, C), its context and two times."""
    own = config.audio_acoustic_hidden_dim
    return {
        "hidden_states": make(made.SIDE, own),
        "context_latents": make(made.SIDE, config.in_channels - own),
        "encoder_hidden_states": make(made.TEXT_TOKENS, config.encoder_hidden_size or config.hidden_size),
        "timestep_r": make(),
    }


def svd(config: Any, make: Maker) -> Inputs:
    """x_t as a video (N, F, C, H, W), an image and its times."""
    size = config.projection_class_embeddings_input_dim // config.addition_time_embed_dim
    return {
        "sample": make(config.num_frames, config.in_channels, *made.side(config)),
        "encoder_hidden_states": make(1, config.cross_attention_dim),
        "added_time_ids": make(size),
    }


def unet_video(config: Any, make: Maker) -> Inputs:
    """x_t as a video (N, C, F, H, W)."""
    return {"sample": make(config.in_channels, made.FRAMES, *made.side(config))}


def motion(config: Any, make: Maker) -> Inputs:
    """x_t as a video, and the text for each of its frames."""
    text = torch.zeros(make.batch * made.FRAMES, made.TEXT_TOKENS, config.cross_attention_dim, device=make.device)
    return {**unet_video(config, make), "encoder_hidden_states": text}


def i2vgen(config: Any, make: Maker) -> Inputs:
    """x_t as a video, and an image."""
    latents = {"image_latents": make(config.in_channels, made.FRAMES, *made.side(config))}
    embedded = {"image_embeddings": make(config.cross_attention_dim), "fps": make.whole()}
    return {**unet_video(config, make), **latents, **embedded}


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


def any_flow_far(config: Any, make: Maker) -> Inputs:
    """As many frames as the chunks hold."""
    frames = sum(config.chunk_partition)
    video = make(frames, config.in_channels, made.SIDE // 2, made.SIDE // 2)
    times = {"timestep": make(frames), "r_timestep": make(frames)}
    return {"hidden_states": video, **times, "chunk_partition": tuple(config.chunk_partition)}


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
         "CosmosTransformer3DModel", "SanaWMTransformer3DModel"), moving,
    ),
    "AnyFlowTransformer3DModel": video_frames_first,
    "AnyFlowFARTransformer3DModel": any_flow_far,
    "Kandinsky3UNet": lambda config, make: {"encoder_attention_mask": make.mask(made.TEXT_TOKENS)},
    **dict.fromkeys(("Kandinsky6Transformer3DModel", "Kandinsky6SRTransformer3DModel"), video_channels_last),
    "Kandinsky5Transformer3DModel": kandinsky5,
    "BriaFiboTransformer2DModel": bria_fibo,
    "BriaFibo2Transformer2DModel": bria_fibo2,
    "ErnieImageTransformer2DModel": ernie,
    "GlmImageTransformer2DModel": glm,
    "HunyuanVideo15Transformer3DModel": hunyuan_video15,
    "HunyuanVideoFramepackTransformer3DModel": framepack,
    "Ideogram4Transformer2DModel": ideogram,
    "JoyImageEditPlusTransformer3DModel": joy_plus,
    "Krea2Transformer2DModel": krea,
    "MiniMaxH3Transformer3DModel": minimax,
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
    "StableAudioDiTModel": stable_audio,
    "StableAudio3DiTModel": stable_audio3,
    "T5FilmDecoder": t5_film,
    "WanAnimateTransformer3DModel": wan_animate,
    "WanVACETransformer3DModel": wan_vace,
    "AceStepTransformer1DModel": ace_step,
    "UNetSpatioTemporalConditionModel": svd,
    "UNet3DConditionModel": unet_video,
    "UNetMotionModel": motion,
    "I2VGenXLUNet": i2vgen,
    "StableCascadeUNet": cascade,
    "UVit2DModel": uvit,
    "UNet1DModel": lambda config, make: {"sample": make(config.in_channels, made.side(config)[0])},
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
