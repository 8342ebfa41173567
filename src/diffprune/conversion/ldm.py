"""Latent-diffusion checkpoints into diffusers pipelines, by diffusers' own key maps where it has them.

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
from diffprune.conversion.exact_loading import filled
from diffprune.conversion.ldm_configs import LatentDiffusion, read_architecture
from diffprune.conversion.state_dicts import Kind, Tensors, some
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
"""Buffers of the noise schedule and the like, which the pipeline computes itself."""


def from_ldm(
    tensors: Mapping[str, Tensor], arch: str, wanted: Literal["ema", "raw"] | None
) -> tuple[DiffusionPipeline, Kind, tuple[str, ...]]:
    """A pipeline of a latent-diffusion state dict; which weights its denoiser has; notes.

    arch: a published name or the path of a research config. wanted: None takes the EMA where there is one.
    Raises ModelError when the weights do not fit, with the names of the tensors that do not.
    """
    model = read_architecture(arch)
    parts = _parts(tensors, arch)
    denoiser, kind = _chosen(parts, wanted)
    scale = float(tensors["scale_factor"]) if "scale_factor" in tensors else model.scale_factor
    vqvae = _autoencoder(parts[_FIRST_STAGE], model, scale, arch)
    unet = _unet(denoiser, model, arch)
    scheduler = DDIMScheduler(**model.scheduler())
    notes = () if kind == "ema" or wanted else ("the file holds no EMA weights; these are the raw ones",)
    condition = parts[_COND_STAGE]
    if model.class_embedder is None:
        if condition:
            raise ModelError(f"{arch} is unconditional, the file has {some(list(condition))}; give another --arch")
        return LDMPipeline(cast(Any, vqvae), cast(Any, unet), scheduler), kind, notes
    config = {"num_classes": model.class_embedder.n_classes - 1, "dim": model.class_embedder.embed_dim}
    named = {name.removeprefix(_COND_STAGE): tensor for name, tensor in condition.items()}
    embedding = filled(empty_model(ClassEmbedding, config), named, f"class embedding of {arch}")
    return ClassConditionalLDMPipeline(*cast(Any, (vqvae, unet, embedding, scheduler))), kind, notes


def _parts(tensors: Mapping[str, Tensor], arch: str) -> dict[str, Tensors]:
    """The tensors of each part, with their full names; raises ModelError for those of no part."""
    parts: dict[str, Tensors] = {prefix: {} for prefix in (_UNET, _EMA, _FIRST_STAGE, _COND_STAGE)}
    strange = []
    for name, tensor in tensors.items():
        prefix = next((prefix for prefix in parts if name.startswith(prefix)), None)
        if name in _NO_WEIGHTS or name.startswith(_LOSS):
            continue
        if prefix is None:
            strange.append(name)
        else:
            parts[prefix][name] = tensor
    if strange or not parts[_UNET]:
        found = f"{len(strange)} left over: {some(strange)}" if strange else f"no {_UNET}*"
        raise ModelError(f"this is no latent-diffusion checkpoint as {arch} is: {found}")
    return parts


def _chosen(parts: Mapping[str, Tensors], wanted: Literal["ema", "raw"] | None) -> tuple[Tensors, Kind]:
    """The denoiser's tensors by their raw names. The EMA's names lack the dots: `model.a.b` is `model_ema.ab`."""
    raw, ema = parts[_UNET], parts[_EMA]
    if wanted == "raw" or (wanted is None and not ema):
        return raw, "raw"
    if not ema:
        raise ModelError("the file holds no EMA weights (model_ema.*); use --weights raw")
    flat = {_EMA + name.removeprefix("model.").replace(".", ""): name for name in raw}
    wrong = sorted(set(flat) ^ set(ema))
    if wrong:
        raise ModelError(f"the EMA and the weights differ in {some(wrong)}; use --weights raw")
    return {name: ema[short] for short, name in flat.items()}, "ema"


def _unet(tensors: Tensors, model: LatentDiffusion, arch: str) -> ModelMixin:
    config, what = model.unet(), f"denoiser of {arch}"
    converted = _mapped(convert_ldm_unet_checkpoint, tensors, config, what)
    if model.class_embedder is not None:
        return filled(_empty(UNet2DConditionModel, config, arch), converted, what)
    split = _split_attention(converted, model.unet_config.params.num_head_channels)
    return filled(_empty(UNet2DModel, config, arch), split, what)


def _autoencoder(tensors: Tensors, model: LatentDiffusion, scale: float, arch: str) -> ModelMixin:
    config, what = model.autoencoder(scale), f"first stage of {arch}"
    layers, codebook = dict(tensors), {}
    if _CODEBOOK in layers:
        codebook["quantize.embedding.weight"] = layers.pop(_CODEBOOK)
    converted = _mapped(convert_ldm_vae_checkpoint, layers, config, what)
    return filled(_empty(VQModel, config, arch), {**converted, **codebook}, what)


def _mapped(convert: Any, tensors: Tensors, config: Mapping[str, Any], what: str) -> Tensors:
    """Map keys as diffusers does, checked: it leaves out what it does not know, and stops at what it misses."""
    try:
        converted: Tensors = convert(tensors, config)
    except KeyError as error:
        raise ModelError(f"{what}: missing {error.args[0]}") from error
    used = {tensor.data_ptr() for tensor in converted.values()}
    left = [name for name, tensor in tensors.items() if tensor.data_ptr() not in used]
    if left:
        raise ModelError(f"{what}: {len(left)} left over: {some(left)}")
    return converted


def _empty(kind: type[ModelMixin], config: Mapping[str, Any], arch: str) -> ModelMixin:
    try:
        return empty_model(kind, config)
    except Exception as error:  # each diffusers class checks its config in its own way
        raise ModelError(f"{arch} describes no {kind.__name__} that can be built: {error}") from error


def _split_attention(tensors: Tensors, head_dim: int) -> Tensors:
    """Attention blocks without cross-attention, which diffusers' map leaves as they are.

    Rows of `qkv` are, head by head, those of q, then of k, then of v (the `legacy` order of the research code).
    """
    split: Tensors = {}
    for name, tensor in tensors.items():
        place, _, rest = name.rpartition(".attentions.")
        number, _, layer = rest.partition(".")
        prefix = f"{place}.attentions.{number}"
        if not place:
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
    """The weight of a convolution over one position as that of a linear layer; biases stay as they are."""
    return tensor.flatten(1) if tensor.dim() > 1 else tensor
