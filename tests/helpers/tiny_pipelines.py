"""Tiny text- and class-conditioned pipelines of real component classes, with random weights, made in memory."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLLTXVideo,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxFillPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)  # fmt: skip
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2TokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)  # fmt: skip

WORDS = ("a", "red", "blue", "cat", "dog")


def _clip_tokenizer() -> CLIPTokenizer:
    words = ["<|startoftext|>", "<|endoftext|>", *(f"{word}</w>" for word in WORDS)]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=8)


def _clip(kind: type = CLIPTextModel, **more: Any) -> Any:
    return kind(
        CLIPTextConfig(
            vocab_size=7, hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=2,
            max_position_embeddings=8, bos_token_id=0, eos_token_id=1, pad_token_id=1, **more,
        )
    ).eval()  # fmt: skip


def _t5_tokenizer() -> T5Tokenizer:
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), *((f"▁{word}", -1.0) for word in WORDS)]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=8)


def _t5(kind: type = T5EncoderModel, config: type = T5Config, *, width: int = 16) -> Any:
    return kind(config(vocab_size=8, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0)).eval()


def _vae(channels: int = 4, **more: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=channels, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **more,
    ).eval()  # fmt: skip


def _unet(**more: Any) -> UNet2DConditionModel:
    config: dict[str, Any] = {
        "sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 16, "attention_head_dim": 2,
    }  # fmt: skip
    return UNet2DConditionModel(**{**config, **more}).eval()


def sd() -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=_vae(), text_encoder=_clip(), tokenizer=_clip_tokenizer(), unet=_unet(),
        scheduler=DDIMScheduler(num_train_timesteps=20, clip_sample=False, steps_offset=1), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sdxl() -> StableDiffusionXLPipeline:
    unet = _unet(
        cross_attention_dim=32, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=16 + 6 * 4, use_linear_projection=True,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=_vae(), text_encoder=_clip(), tokenizer=_clip_tokenizer(),
        text_encoder_2=_clip(CLIPTextModelWithProjection, projection_dim=16), tokenizer_2=_clip_tokenizer(), unet=unet,
        scheduler=EulerDiscreteScheduler(num_train_timesteps=20), add_watermarker=False,
    )  # fmt: skip


def sd3() -> StableDiffusion3Pipeline:
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=64, caption_projection_dim=16, pooled_projection_dim=32, out_channels=4,
        pos_embed_max_size=8,
    ).eval()  # fmt: skip
    clips = [_clip(CLIPTextModelWithProjection, projection_dim=16) for _ in range(2)]
    return StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=20),
        vae=_vae(shift_factor=0.1), text_encoder=clips[0], tokenizer=_clip_tokenizer(), text_encoder_2=clips[1],
        tokenizer_2=_clip_tokenizer(), text_encoder_3=_t5(width=64), tokenizer_3=_t5_tokenizer(),
    )  # fmt: skip


def flux() -> FluxPipeline:
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    ).eval()  # fmt: skip
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=20), vae=_vae(1, shift_factor=0.1),
        text_encoder=_clip(), tokenizer=_clip_tokenizer(), text_encoder_2=_t5(), tokenizer_2=_t5_tokenizer(),
        transformer=transformer,
    )  # fmt: skip


def _byte_tokenizer() -> Qwen2TokenizerFast:
    symbols = ["<|endoftext|>", *sorted(ByteLevel.alphabet())]
    return Qwen2TokenizerFast(
        vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[],
        chat_template="{% for message in messages %}{{ message['content'] }}{% endfor %}",
    )  # fmt: skip


def flux2() -> Flux2KleinPipeline:
    encoder = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=257, hidden_size=8, intermediate_size=8, num_attention_heads=2, num_key_value_heads=2,
            head_dim=4, num_hidden_layers=28,
        )
    ).eval()  # fmt: skip
    transformer = Flux2Transformer2DModel(
        patch_size=1, in_channels=8, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    ).eval()  # fmt: skip
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=2, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()  # fmt: skip
    vae.bn.running_mean.copy_(torch.randn(8))
    vae.bn.running_var.copy_(torch.rand(8) + 0.5)
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=20), vae=vae, text_encoder=encoder,
        tokenizer=_byte_tokenizer(), transformer=transformer,
    )  # fmt: skip


def qwen() -> QwenImagePipeline:
    text: dict[str, Any] = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "vocab_size": 257, "bos_token_id": 0, "eos_token_id": 0,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16,
        "window_size": 4, "fullatt_block_indexes": [0],
    }  # fmt: skip
    encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)).eval()
    transformer = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, guidance_embeds=False, axes_dims_rope=(8, 4, 4),
    ).eval()  # fmt: skip
    vae = AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 0.5],
    ).eval()  # fmt: skip
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=20), vae=vae, text_encoder=encoder,
        tokenizer=_byte_tokenizer(), transformer=transformer,
    )  # fmt: skip


def pixart() -> PixArtAlphaPipeline:
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=3, sample_size=8,
        patch_size=2, cross_attention_dim=16, caption_channels=16, use_additional_conditions=False,
    ).eval()  # fmt: skip
    return PixArtAlphaPipeline(
        tokenizer=_t5_tokenizer(), text_encoder=_t5(), vae=_vae(), transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(num_train_timesteps=20),
    )  # fmt: skip


def dit() -> DiTPipeline:
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=3, sample_size=8,
        patch_size=2, num_embeds_ada_norm=10,
    ).eval()  # fmt: skip
    return DiTPipeline(transformer=transformer, vae=_vae(), scheduler=DDIMScheduler(num_train_timesteps=20))


def ltx() -> LTXPipeline:
    transformer = LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=4, attention_head_dim=8, cross_attention_dim=32,
        num_layers=2, caption_channels=16,
    ).eval()  # fmt: skip
    vae = AutoencoderKLLTXVideo(
        in_channels=3, out_channels=3, latent_channels=8, block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8), layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=(True, True, False, False), decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5, upsample_residual=(False,) * 4, upsample_factor=(1,) * 4,
        timestep_conditioning=False, patch_size=1, patch_size_t=1, encoder_causal=True, decoder_causal=False,
    ).eval()  # fmt: skip
    return LTXPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=20), vae=vae, text_encoder=_t5(),
        tokenizer=_t5_tokenizer(), transformer=transformer,
    )  # fmt: skip


def wan() -> WanPipeline:
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16,
        text_dim=16, freq_dim=16, ffn_dim=32, num_layers=2, cross_attn_norm=True, rope_max_seq_len=32,
    ).eval()  # fmt: skip
    vae = AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval()
    return WanPipeline(
        tokenizer=_t5_tokenizer(), text_encoder=_t5(UMT5EncoderModel, UMT5Config), transformer=transformer, vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=20, shift=3.0),
    )  # fmt: skip


def inpaint() -> StableDiffusionInpaintPipeline:
    unet = _unet(in_channels=9, out_channels=4)  # x_t, the mask, latents of what is left of the image
    components = {**sd().components, "unet": unet}
    return StableDiffusionInpaintPipeline(**components, requires_safety_checker=False)


def pix2pix() -> StableDiffusionInstructPix2PixPipeline:
    components = {**sd().components, "unet": _unet(in_channels=8, out_channels=4)}
    return StableDiffusionInstructPix2PixPipeline(**components, requires_safety_checker=False)


def fill() -> FluxFillPipeline:
    components = flux().components
    config = _changed(components["transformer"], in_channels=4 + 4 + 4 * 4, out_channels=4)
    transformer = FluxTransformer2DModel.from_config(config).eval()  # x_t, latents of the image, the mask's pixels
    return FluxFillPipeline(**{**_taken_by(FluxFillPipeline, components), "transformer": transformer})


def kontext() -> FluxKontextPipeline:
    return FluxKontextPipeline(**flux().components)


def wan_i2v() -> WanImageToVideoPipeline:
    components = wan().components
    config = _changed(components["transformer"], in_channels=16 + 4 + 16, out_channels=16)
    transformer = WanTransformer3DModel.from_config(config).eval()  # x_t, which frames are given, and their latents
    return WanImageToVideoPipeline(**{**_taken_by(WanImageToVideoPipeline, components), "transformer": transformer})


def _changed(model: Any, **entries: Any) -> dict[str, Any]:
    return {**{name: v for name, v in model.config.items() if not name.startswith("_")}, **entries}


def _taken_by(kind: type, components: dict[str, Any]) -> dict[str, Any]:
    return {name: c for name, c in components.items() if name in inspect.signature(kind.__init__).parameters}


FROM_IMAGES: dict[str, Callable[[], Any]] = {
    "inpaint": inpaint, "pix2pix": pix2pix, "fill": fill, "kontext": kontext, "wan_i2v": wan_i2v,
}  # fmt: skip
"""Pipelines that draw from images that they are given."""

PIPELINES: dict[str, Callable[[], Any]] = {
    "sd": sd, "sdxl": sdxl, "sd3": sd3, "flux": flux, "flux2": flux2, "pixart": pixart, "dit": dit, "ltx": ltx,
    "wan": wan, "qwen": qwen,
}  # fmt: skip
SIZES: dict[str, list[str]] = {
    "sd": [], "sdxl": [], "sd3": [], "flux": ["--height", "16", "--width", "16"],
    "flux2": ["--height", "16", "--width", "16"],
    "pixart": ["--height", "16", "--width", "16"], "dit": [],
    "ltx": ["--height", "32", "--width", "32", "--num-frames", "9"],
    "wan": ["--height", "16", "--width", "16", "--num-frames", "5"], "qwen": ["--height", "16", "--width", "16"],
    "inpaint": [], "pix2pix": [], "fill": ["--height", "16", "--width", "16"],
    "kontext": ["--height", "16", "--width", "16"],
    "wan_i2v": ["--height", "16", "--width", "16", "--num-frames", "5"],
}  # fmt: skip
"""Words of the command line that keep what they draw small."""


def tiny(name: str) -> Any:
    """One of `PIPELINES` or `FROM_IMAGES`, with the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {**PIPELINES, **FROM_IMAGES}[name]()
