"""What the denoisers of videos and of sounds are called with where names do not tell."""

from typing import Any

import torch

from diffprune.architectures.example_inputs import derived_inputs as made
from diffprune.architectures.example_inputs.derived_inputs import Inputs, Maker, video


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


def joy_plus(config: Any, make: Maker) -> Inputs:
    """x_t as a list of patches, and the shape they come from."""
    frames, rows, columns = made.FRAMES, made.SIDE // 2, made.SIDE // 2
    patches = make(frames * rows * columns, config.in_channels, *config.patch_size)
    return {"hidden_states": patches, "shape_list": [[(frames, rows, columns)]] * make.batch}


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


def any_flow_far(config: Any, make: Maker) -> Inputs:
    """As many frames as the chunks hold."""
    frames = sum(config.chunk_partition)
    video = make(frames, config.in_channels, made.SIDE // 2, made.SIDE // 2)
    times = {"timestep": make(frames), "r_timestep": make(frames)}
    return {"hidden_states": video, **times, "chunk_partition": tuple(config.chunk_partition)}


def refiner(config: Any, make: Maker) -> Inputs:
    """The tokens of a video, and its rotary table."""
    length = made.FRAMES * (made.SIDE // 2) ** 2
    if config.rope_type == "split":
        table = make(config.num_attention_heads, length, config.attention_head_dim // 2)
    else:
        table = make(length, config.num_attention_heads * config.attention_head_dim)
    text = make(made.TEXT_TOKENS, config.caption_channels)
    given = {"hidden_states": make(length, config.in_channels), "encoder_hidden_states": text}
    return {**given, "timestep": make(1), "video_rotary_emb": (table, table)}


def masked_text(config: Any, make: Maker) -> Inputs:
    """x_t as a video, a time for each of its frames, the text (N, 1, L, D) and its mask."""
    text = {"encoder_hidden_states": make(1, made.TEXT_TOKENS, config.caption_channels)}
    return {**moving(config, make), **text, "timestep": make(1, made.FRAMES), "mask": make.mask(made.TEXT_TOKENS)}


def cosmos3(config: Any, make: Maker) -> Inputs:
    """Text and one video in a single sequence, whatever the batch; all frames are noisy."""
    size = made.SIDE // 2
    shape = (made.FRAMES, size // config.latent_patch_size, size // config.latent_patch_size)
    noisy = shape[0] * shape[1] * shape[2]
    places = torch.arange(made.TEXT_TOKENS + noisy, device=make.device)
    return {
        "input_ids": torch.zeros(made.TEXT_TOKENS, dtype=torch.long, device=make.device),
        "text_indexes": places[: made.TEXT_TOKENS],
        "position_ids": places.expand(3, -1),
        "und_len": made.TEXT_TOKENS,
        "sequence_length": made.TEXT_TOKENS + noisy,
        "vision_tokens": [make.bare(1, config.latent_channel, made.FRAMES, size, size)],
        "vision_token_shapes": [shape],
        "vision_sequence_indexes": places[made.TEXT_TOKENS :],
        "vision_mse_loss_indexes": places[made.TEXT_TOKENS :],
        "vision_timesteps": make.bare(noisy),
        "vision_noisy_frame_indexes": [torch.arange(made.FRAMES, device=make.device)],
    }
