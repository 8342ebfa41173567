"""Example inputs of video and audio denoisers that cannot be derived from names."""

from collections.abc import Mapping
from typing import Any

import torch

from diffprune.architectures.example_inputs.derived_inputs import (
    InputFactory,
    Inputs,
    Special,
    latent_size,
    video,
    zeros_of,
)


def moving(config: Any, make: InputFactory) -> Inputs:
    """Return x_t as a video (N, C, F, H, W)."""
    return {"hidden_states": video(config, make)}


def frames_first(config: Any, make: InputFactory) -> Inputs:
    """Return x_t as a video (N, F, C, H, W) of the size in the config, text tokens, and the rotary table."""
    height, width = config.sample_height, config.sample_width
    frames = (config.sample_frames - 1) // config.temporal_compression_ratio + 1
    if config.use_rotary_positional_embeddings and getattr(config, "patch_size_t", None):
        frames += frames % config.patch_size_t
    inputs: Inputs = {"hidden_states": make(frames, config.in_channels, height, width), "timestep": make.integers()}
    inputs["encoder_hidden_states"] = make(config.max_text_seq_length, config.text_embed_dim)
    if config.use_rotary_positional_embeddings:
        patches = (height // config.patch_size) * (width // config.patch_size)
        steps = frames // (getattr(config, "patch_size_t", None) or 1)
        table = make.unbatched(steps * patches, config.attention_head_dim)
        inputs["image_rotary_emb"] = (table, table)
    if getattr(config, "ofs_embed_dim", None):
        inputs["ofs"] = make()
    return inputs


def ltx(config: Any, make: InputFactory) -> Inputs:
    """Return x_t as video tokens, and its shape."""
    shape = {"num_frames": make.frames, "height": make.side // 2, "width": make.side // 2}
    length = make.frames * (make.side // 2) ** 2
    return {"hidden_states": make(length, config.in_channels), **shape}


def ltx2(config: Any, make: InputFactory) -> Inputs:
    """Return video and audio tokens."""
    audio = {"audio_hidden_states": make(8, config.audio_in_channels), "audio_num_frames": 8}
    text = {"audio_encoder_hidden_states": make(make.text_tokens, config.caption_channels)}
    return {**ltx(config, make), **audio, **text}


def video_frames_first(config: Any, make: InputFactory) -> Inputs:
    """Return x_t as a video (N, F, C, H, W), and two timesteps per frame."""
    frames = make(make.frames, config.in_channels, make.side // 2, make.side // 2)
    return {"hidden_states": frames, "timestep": make(make.frames), "r_timestep": make(make.frames)}


def video_channels_last(config: Any, make: InputFactory) -> Inputs:
    """Return x_t as a video (N, F, H, W, C), pooled text and positions of the patches."""
    size = make.side if not hasattr(config, "in_text_dim") else make.side // 2
    conditioned = getattr(config, "visual_cond", not hasattr(config, "in_text_dim"))
    channels = config.in_visual_dim + (config.in_visual_dim + 1 if conditioned else 0)  # conditioning and mask
    inputs: Inputs = {"hidden_states": make(make.frames, size, size, channels)}
    if hasattr(config, "in_text_dim2"):
        inputs["pooled_projections"] = make(config.in_text_dim2)
        lengths = (make.frames, size // config.patch_size[1], size // config.patch_size[2])
        inputs["visual_rope_pos"] = tuple(torch.arange(length, device=make.device) for length in lengths)
    return inputs


def kandinsky5(config: Any, make: InputFactory) -> Inputs:
    """Return the inputs of `video_channels_last`, and positions of the text."""
    return {**video_channels_last(config, make), "text_rope_pos": torch.arange(make.text_tokens, device=make.device)}


def hunyuan_video15(config: Any, make: InputFactory) -> Inputs:
    """Return x_t as a video, a second text and an image."""
    second = {"encoder_hidden_states_2": make(make.text_tokens, config.text_embed_2_dim)}
    masks = {"encoder_attention_mask_2": make.mask(make.text_tokens)}
    return {**moving(config, make), **second, **masks, "image_embeds": make(make.text_tokens, config.image_embed_dim)}


def framepack(config: Any, make: InputFactory) -> Inputs:
    """Return x_t as a video, an image, and history of zeros."""
    indices = torch.arange(make.frames, device=make.device)
    first = make(config.in_channels, 1, make.side // 2, make.side // 2)
    clean: Inputs = {"latents_clean": first, "indices_latents_clean": indices[:1]}
    for factor in (2, 4):
        history = make(config.in_channels, factor, make.side // 2, make.side // 2)
        clean[f"latents_history_{factor}x"] = history
        clean[f"indices_latents_history_{factor}x"] = torch.arange(factor, device=make.device)
    clean = clean if config.has_clean_x_embedder else {}
    image = make(make.text_tokens, config.image_proj_dim) if config.has_image_proj else None
    return {**moving(config, make), "image_embeds": image, "indices_latents": indices, **clean}


def joy_plus(config: Any, make: InputFactory) -> Inputs:
    """Return x_t as patches, and their grid."""
    frames, rows, columns = make.frames, make.side // 2, make.side // 2
    patches = make(frames * rows * columns, config.in_channels, *config.patch_size)
    return {"hidden_states": patches, "shape_list": [[(frames, rows, columns)]] * make.batch}


def minimax(config: Any, make: InputFactory) -> Inputs:
    """Return text, video and audio tokens in one sequence."""
    lengths = {"text_indices": make.text_tokens, "video_indices": make.frames * make.side, "audio_indices": 8}
    total = sum(lengths.values())
    parts = torch.arange(total, device=make.device).split(list(lengths.values()))
    patch = config.in_channels * config.patch_size[0] * config.patch_size[1] * config.patch_size[2]
    zeros = torch.zeros(total, dtype=torch.long, device=make.device)
    return {
        "hidden_states": make(lengths["video_indices"], patch),
        "audio_hidden_states": make(8, config.audio_in_channels),
        "timestep": make.unbatched(1),
        "timestep_indices": zeros,
        "token_tags": zeros,
        "position_ids": make.unbatched(total, 3),
        **dict(zip(lengths, parts, strict=True)),
    }


def stable_audio(config: Any, make: InputFactory) -> Inputs:
    """Return x_t as audio (N, C, L), global conditioning, and the rotary table of both."""
    table = make.unbatched(make.side + 1, config.attention_head_dim // 2)
    audio = {"hidden_states": make(config.in_channels, make.side), "rotary_embedding": (table, table)}
    return {**audio, "global_hidden_states": make(1, config.global_states_input_dim)}


def t5_film(config: Any, make: InputFactory) -> Inputs:
    """Return encoded notes with their mask, x_t, and t."""
    notes = (make(make.text_tokens, config.d_model), make(make.text_tokens) + 1)
    noisy = make(config.targets_length, config.input_dims)
    return {"encodings_and_masks": [notes], "decoder_input_tokens": noisy, "decoder_noise_time": make()}


def wan_animate(config: Any, make: InputFactory) -> Inputs:
    """Return x_t as a video, poses and a face."""
    pose = make(config.latent_channels, make.frames - 1, make.side // 2, make.side // 2)
    face = make(3, 4 * (make.frames - 1) + 1 - 4, config.motion_encoder_size, config.motion_encoder_size)
    image = (
        {} if config.image_dim is None else {"encoder_hidden_states_image": make(make.text_tokens, config.image_dim)}
    )
    return {**moving(config, make), "pose_hidden_states": pose, "face_pixel_values": face, **image}


def wan_vace(config: Any, make: InputFactory) -> Inputs:
    """Return x_t as a video, and control latents."""
    control = make(config.vace_in_channels, make.frames, make.side // 2, make.side // 2)
    return {**moving(config, make), "control_hidden_states": control}


def ace_step(config: Any, make: InputFactory) -> Inputs:
    """Return x_t as audio (N, L, C), its context and a second timestep."""
    channels = config.audio_acoustic_hidden_dim
    return {
        "hidden_states": make(make.side, channels),
        "context_latents": make(make.side, config.in_channels - channels),
        "encoder_hidden_states": make(make.text_tokens, config.encoder_hidden_size or config.hidden_size),
        "timestep_r": make(),
    }


def svd(config: Any, make: InputFactory) -> Inputs:
    """Return x_t as a video (N, F, C, H, W), an image embedding and time ids."""
    size = config.projection_class_embeddings_input_dim // config.addition_time_embed_dim
    return {
        "sample": make(config.num_frames, config.in_channels, *latent_size(config)),
        "encoder_hidden_states": make(1, config.cross_attention_dim),
        "added_time_ids": make(size),
    }


def unet_video(config: Any, make: InputFactory) -> Inputs:
    """Return x_t as a video (N, C, F, H, W), of the size in the config."""
    return {"sample": make(config.in_channels, make.frames, *latent_size(config))}


def motion(config: Any, make: InputFactory) -> Inputs:
    """Return x_t as a video, and text tokens per frame."""
    text = torch.zeros(make.batch * make.frames, make.text_tokens, config.cross_attention_dim, device=make.device)
    return {**unet_video(config, make), "encoder_hidden_states": text}


def i2vgen(config: Any, make: InputFactory) -> Inputs:
    """Return x_t as a video, and an image."""
    latents = {"image_latents": make(config.in_channels, make.frames, *latent_size(config))}
    embedded = {"image_embeddings": make(config.cross_attention_dim), "fps": make.integers()}
    return {**unet_video(config, make), **latents, **embedded}


def any_flow_far(config: Any, make: InputFactory) -> Inputs:
    """Return x_t as a video with the frames of all chunks, and two timesteps per frame."""
    frames = sum(config.chunk_partition)
    video = make(frames, config.in_channels, make.side // 2, make.side // 2)
    times = {"timestep": make(frames), "r_timestep": make(frames)}
    return {"hidden_states": video, **times, "chunk_partition": tuple(config.chunk_partition)}


def refiner(config: Any, make: InputFactory) -> Inputs:
    """Return video tokens, and their rotary table."""
    length = make.frames * (make.side // 2) ** 2
    if config.rope_type == "split":
        table = make(config.num_attention_heads, length, config.attention_head_dim // 2)
    else:
        table = make(length, config.num_attention_heads * config.attention_head_dim)
    text = make(make.text_tokens, config.caption_channels)
    tokens = {"hidden_states": make(length, config.in_channels), "encoder_hidden_states": text}
    return {**tokens, "timestep": make(1), "video_rotary_emb": (table, table)}


def masked_text(config: Any, make: InputFactory) -> Inputs:
    """Return x_t as a video, a timestep per frame, the text (N, 1, L, D) and its mask."""
    text = {"encoder_hidden_states": make(1, make.text_tokens, config.caption_channels)}
    return {**moving(config, make), **text, "timestep": make(1, make.frames), "mask": make.mask(make.text_tokens)}


def cosmos3(config: Any, make: InputFactory) -> Inputs:
    """Return text and one video in a single sequence, for any batch size; all frames are noisy."""
    size = make.side // 2
    shape = (make.frames, size // config.latent_patch_size, size // config.latent_patch_size)
    noisy = shape[0] * shape[1] * shape[2]
    positions = torch.arange(make.text_tokens + noisy, device=make.device)
    return {
        "input_ids": torch.zeros(make.text_tokens, dtype=torch.long, device=make.device),
        "text_indexes": positions[: make.text_tokens],
        "position_ids": positions.expand(3, -1),
        "und_len": make.text_tokens,
        "sequence_length": make.text_tokens + noisy,
        "vision_tokens": [make.unbatched(1, config.latent_channel, make.frames, size, size)],
        "vision_token_shapes": [shape],
        "vision_sequence_indexes": positions[make.text_tokens :],
        "vision_mse_loss_indexes": positions[make.text_tokens :],
        "vision_timesteps": make.unbatched(noisy),
        "vision_noisy_frame_indexes": [torch.arange(make.frames, device=make.device)],
    }


VIDEO_INPUTS: Mapping[str, Special] = {
    **dict.fromkeys(
        ("WanTransformer3DModel", "SkyReelsV2Transformer3DModel", "ChronoEditTransformer3DModel",
         "HeliosTransformer3DModel", "HunyuanVideoTransformer3DModel", "MochiTransformer3DModel",
         "AllegroTransformer3DModel", "LatteTransformer3DModel", "SanaVideoTransformer3DModel",
         "EasyAnimateTransformer3DModel", "JoyImageEditTransformer3DModel", "MotifVideoTransformer3DModel",
         "CosmosTransformer3DModel"), moving,
    ),
    **dict.fromkeys(("CogVideoXTransformer3DModel", "ConsisIDTransformer3DModel"), frames_first),
    **dict.fromkeys(("Kandinsky6Transformer3DModel", "Kandinsky6SRTransformer3DModel"), video_channels_last),
    "AceStepTransformer1DModel": ace_step,
    "AnyFlowFARTransformer3DModel": any_flow_far,
    "AnyFlowTransformer3DModel": video_frames_first,
    "Cosmos3OmniTransformer": cosmos3,
    "HunyuanVideo15Transformer3DModel": hunyuan_video15,
    "HunyuanVideoFramepackTransformer3DModel": framepack,
    "I2VGenXLUNet": i2vgen,
    "JoyImageEditPlusTransformer3DModel": joy_plus,
    "Kandinsky5Transformer3DModel": kandinsky5,
    "LTX2VideoTransformer3DModel": ltx2,
    "LTXVideoTransformer3DModel": ltx,
    "LongCatAudioDiTTransformer": zeros_of(hidden_states=("side", "latent_dim")),
    "MiniMaxH3Transformer3DModel": minimax,
    "MiniMaxMusic3RVQDepthDecoder": zeros_of(inputs_embeds=(4, "hidden_size")),
    "MiniMaxMusic3Transformer1DModel": zeros_of(
        hidden_states=("in_channels", "side"), encoder_hidden_states=("side", "condition_dim")
    ),
    "SanaWMLTX2RefinerTransformer3DModel": refiner,
    "SanaWMTransformer3DModel": masked_text,
    "StableAudio3DiTModel": zeros_of(hidden_states=("io_channels", "side"), global_hidden_states=("global_cond_dim",)),
    "StableAudioDiTModel": stable_audio,
    "T5FilmDecoder": t5_film,
    "UNet3DConditionModel": unet_video,
    "UNetMotionModel": motion,
    "UNetSpatioTemporalConditionModel": svd,
    "WanAnimateTransformer3DModel": wan_animate,
    "WanVACETransformer3DModel": wan_vace,
}  # fmt: skip
"""Class -> the inputs that `derived_inputs` cannot derive."""
