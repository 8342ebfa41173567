"""Convert latent-diffusion checkpoints to diffusers pipelines, with the key maps of diffusers where it has them.

Source: Rombach et al. 2022; the denoisers are those of Dhariwal and Nichol 2021 with or without cross-attention.
"""

from collections.abc import Mapping
from typing import Any, Literal, cast

from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.deprecated.latent_diffusion_uncond.pipeline_latent_diffusion_uncond import LDMPipeline
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from diffprune.artifact.pruned_classes import empty_model
from diffprune.conversion.exact_loading import load_exactly
from diffprune.conversion.ldm_configs import LatentDiffusion, read_architecture
from diffprune.conversion.state_dicts import Kind, Tensors, abbreviated
from diffprune.errors import ModelError
from diffprune.pipelines.class_conditional import ClassConditionalLDMPipeline, ClassEmbedding

_UNET = "model.diffusion_model."
_EMA = "model_ema."
_FIRST_STAGE = "first_stage_model."
_CODEBOOK = f"{_FIRST_STAGE}quantize.embedding.weight"
_LOSS = f"{_FIRST_STAGE}loss."
_COND_STAGE = "cond_stage_model."
_NO_WEIGHTS = frozenset(
    {
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "betas",
        "log_one_minus_alphas_cumprod",
        "logvar",
        "lvlb_weights",
        "model_ema.decay",
        "model_ema.num_updates",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
        "posterior_variance",
        "scale_factor",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
    }
)
"""Buffers, mostly of the noise schedule, that the pipeline computes itself."""


def from_ldm(
    tensors: Mapping[str, Tensor], arch: str, wanted: Literal["ema", "raw"] | None
) -> tuple[DiffusionPipeline, Kind, tuple[str, ...]]:
    """Return the pipeline of a latent-diffusion state dict, the kind of its denoiser's weights, and notes for the user.

    arch: a published name or the path of a research config. wanted: which weights; None prefers the EMA.
    Raises ModelError, with the names of the tensors, if the weights do not fit.
    """
    model = read_architecture(arch)
    parts = _parts(tensors, arch)
    denoiser, kind = _chosen(parts, wanted)
    scale = float(tensors["scale_factor"]) if "scale_factor" in tensors else model.scale_factor
    vqvae = _autoencoder(parts[_FIRST_STAGE], model, scale, arch)
    unet = _unet(denoiser, model, arch)
    scheduler = DDIMScheduler(**model.scheduler())
    notes = () if kind == "ema" or wanted else ("the file holds no EMA weights; converted the raw ones",)
    cond_stage = parts[_COND_STAGE]
    if model.class_embedder is None:
        if cond_stage:
            names = abbreviated(list(cond_stage))
            raise ModelError(f"{arch} is unconditional, but the file has {names}; pass another --arch")
        return LDMPipeline(cast(Any, vqvae), cast(Any, unet), scheduler), kind, notes
    config = {"num_classes": model.class_embedder.n_classes - 1, "dim": model.class_embedder.embed_dim}
    named = {name.removeprefix(_COND_STAGE): tensor for name, tensor in cond_stage.items()}
    embedding = load_exactly(empty_model(ClassEmbedding, config), named, f"class embedding of {arch}")
    return ClassConditionalLDMPipeline(*cast(Any, (vqvae, unet, embedding, scheduler))), kind, notes


def _parts(tensors: Mapping[str, Tensor], arch: str) -> dict[str, Tensors]:
    """Split tensors by part, with their full names; raise ModelError for tensors of no part."""
    parts: dict[str, Tensors] = {prefix: {} for prefix in (_UNET, _EMA, _FIRST_STAGE, _COND_STAGE)}
    unexpected = []
    for name, tensor in tensors.items():
        prefix = next((prefix for prefix in parts if name.startswith(prefix)), None)
        if name in _NO_WEIGHTS or name.startswith(_LOSS):
            continue
        if prefix is None:
            unexpected.append(name)
        else:
            parts[prefix][name] = tensor
    if unexpected or not parts[_UNET]:
        reason = f"{len(unexpected)} unexpected: {abbreviated(unexpected)}" if unexpected else f"no {_UNET}*"
        raise ModelError(f"the file is not a latent-diffusion checkpoint of {arch}: {reason}")
    return parts


def _chosen(parts: Mapping[str, Tensors], wanted: Literal["ema", "raw"] | None) -> tuple[Tensors, Kind]:
    """Return the denoiser's tensors by their raw names. EMA names have no dots: `model.a.b` is `model_ema.ab`."""
    raw, ema = parts[_UNET], parts[_EMA]
    if wanted == "raw" or (wanted is None and not ema):
        return raw, "raw"
    if not ema:
        raise ModelError("the file holds no EMA weights (model_ema.*); use --weights raw")
    flat = {_EMA + name.removeprefix("model.").replace(".", ""): name for name in raw}
    wrong = sorted(set(flat) ^ set(ema))
    if wrong:
        raise ModelError(f"the EMA and the weights differ in {abbreviated(wrong)}; use --weights raw")
    return {name: ema[short] for short, name in flat.items()}, "ema"


def _unet(tensors: Tensors, model: LatentDiffusion, arch: str) -> ModelMixin:
    config, label = model.unet(), f"denoiser of {arch}"
    converted = _mapped(convert_ldm_unet_checkpoint, tensors, config, label)
    if model.class_embedder is not None:
        return load_exactly(_empty(UNet2DConditionModel, config, arch), converted, label)
    split = _split_attention(converted, model.unet_config.params.num_head_channels)
    return load_exactly(_empty(UNet2DModel, config, arch), split, label)


def _autoencoder(tensors: Tensors, model: LatentDiffusion, scale: float, arch: str) -> ModelMixin:
    config, label = model.autoencoder(scale), f"first stage of {arch}"
    layers, codebook = dict(tensors), {}
    if _CODEBOOK in layers:
        codebook["quantize.embedding.weight"] = layers.pop(_CODEBOOK)
    converted = _mapped(convert_ldm_vae_checkpoint, layers, config, label)
    return load_exactly(_empty(VQModel, config, arch), {**converted, **codebook}, label)


def _mapped(convert: Any, tensors: Tensors, config: Mapping[str, Any], label: str) -> Tensors:
    """Map keys with a function of diffusers; raise ModelError for tensors that it ignores or misses."""
    try:
        converted: Tensors = convert(tensors, config)
    except KeyError as error:
        raise ModelError(f"{label}: missing {error.args[0]}") from error
    used = {tensor.data_ptr() for tensor in converted.values()}
    ignored = [name for name, tensor in tensors.items() if tensor.data_ptr() not in used]
    if ignored:
        raise ModelError(f"{label}: {len(ignored)} unexpected: {abbreviated(ignored)}")
    return converted


def _empty(kind: type[ModelMixin], config: Mapping[str, Any], arch: str) -> ModelMixin:
    try:
        return empty_model(kind, config)
    except Exception as error:  # each diffusers class validates its config in its own way
        raise ModelError(f"{arch} is not a valid {kind.__name__}: {error}") from error


def _split_attention(tensors: Tensors, head_dim: int) -> Tensors:
    """Split the `qkv` of attention blocks without cross-attention, which the map of diffusers does not convert.

    The rows of `qkv` are grouped by head: those of q, then k, then v (the `legacy` order of the research code).
    """
    split: Tensors = {}
    for name, tensor in tensors.items():
        block, _, rest = name.rpartition(".attentions.")
        number, _, layer = rest.partition(".")
        prefix = f"{block}.attentions.{number}"
        if not block:
            split[name] = tensor
        elif layer.startswith("norm."):
            split[f"{prefix}.group_norm.{layer.removeprefix('norm.')}"] = tensor
        elif layer.startswith("proj_out."):
            split[f"{prefix}.to_out.0.{layer.removeprefix('proj_out.')}"] = _linear(tensor)
        elif layer.startswith("qkv.") and tensor.shape[0] % (3 * head_dim) == 0:
            by_head = _linear(tensor).unflatten(0, (-1, 3, head_dim))
            for i, part in enumerate("qkv"):
                split[f"{prefix}.to_{part}.{layer.removeprefix('qkv.')}"] = by_head[:, i].flatten(0, 1)
        else:
            split[name] = tensor
    return split


def _linear(tensor: Tensor) -> Tensor:
    """Return the weight of a 1x1 convolution as that of a linear layer; biases are returned unchanged."""
    return tensor.flatten(1) if tensor.dim() > 1 else tensor
