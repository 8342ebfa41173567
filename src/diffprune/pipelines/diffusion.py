"""The diffusion process of a pipeline: noise schedule, shape and autoencoder of x_t, and class conditioning."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor

from diffprune.errors import ModelError
from diffprune.pipelines.denoiser_access import denoiser_of, scheduler_of
from diffprune.pipelines.pipeline_call import call_options, takes_prompts

Conditioning = Mapping[str, Tensor]
"""Keyword arguments of a denoiser's forward pass other than x_t and t, one row per image."""

UNCONDITIONAL: Conditioning = {}


@dataclass(frozen=True)
class Classes:
    """Class conditioning of a denoiser.

    null_class: label of the unconditional output, for guidance; None if the model has none.
    embed: labels (N,) -> conditioning.
    """

    num_classes: int
    null_class: int | None
    embed: Callable[[Tensor], Conditioning]


@dataclass(frozen=True)
class DiffusionProcess:
    """Noise schedule, spaces and conditioning of a denoiser.

    scheduler: a diffusers scheduler, for its noise schedule and prediction type.
    shape: (C, H, W) of x_t. image_shape: (C, H, W) of the images. Both empty for a text-conditioned model.
    autoencoder: encodes images to x_0 and decodes x_0; None for a denoiser of pixels.
    classes: None for a model without class conditioning.
    pipeline: of a text-conditioned model, whose own call shows how to condition it; None for others.
    """

    scheduler: Any
    shape: tuple[int, ...]
    image_shape: tuple[int, ...]
    autoencoder: ModelMixin | None = None
    classes: Classes | None = None
    pipeline: Any = None

    @property
    def num_timesteps(self) -> int:
        """T, the number of timesteps of the schedule."""
        return num_timesteps_of(self.scheduler)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode clean images (N, C, H, W) in [-1, 1] to x_0."""
        if self.autoencoder is None:
            return images
        autoencoder: Any = self.autoencoder
        latents = encode_images(autoencoder.to(images.device), images)
        return (latents - _shift(autoencoder)) * float(autoencoder.config.scaling_factor)

    @torch.no_grad()
    def decode(self, x_0: Tensor) -> Tensor:
        """Decode x_0 to images (N, C, H, W), approximately in [-1, 1]."""
        if self.autoencoder is None:
            return x_0
        autoencoder: Any = self.autoencoder
        latents = x_0 / autoencoder.config.scaling_factor + _shift(autoencoder)
        images: Tensor = autoencoder.to(x_0.device).decode(latents.to(autoencoder.dtype)).sample
        return images.float()


def process_of(model: DiffusionPipeline | ModelMixin) -> DiffusionProcess:
    """Return the diffusion process of a pipeline.

    Raises ModelError for a bare denoiser, which has no noise schedule, and for schedules and conditioning that are not
    supported.
    """
    denoiser, scheduler = denoiser_of(model), scheduler_of(model)
    config: Any = denoiser.config
    if not is_flow(scheduler) and not (
        hasattr(scheduler, "alphas_cumprod") and hasattr(scheduler.config, "prediction_type")
    ):
        raise ModelError(
            f"{type(scheduler).__name__} is not supported: it has no alphas_cumprod or no prediction type. Supported: "
            "schedulers of DDPM, such as DDPMScheduler, DDIMScheduler or DPMSolverMultistepScheduler, and of flow "
            "matching"
        )
    if takes_prompts(model):
        return DiffusionProcess(scheduler, (), (), pipeline=model)
    if "image" in call_options(model):
        raise ModelError(
            f"{type(model).__name__} is conditioned on images without a text, which is not supported; use criterion "
            "random or magnitude"
        )
    if is_flow(scheduler):
        raise ModelError(
            f"{type(scheduler).__name__} is a flow-matching scheduler, which is supported for text-conditioned "
            "pipelines only"
        )
    if config.out_channels not in (config.in_channels, 2 * config.in_channels):
        raise ModelError(
            f"the {type(denoiser).__name__} has {config.in_channels} input and {config.out_channels} output channels: "
            "extra input channels are not supported; use criterion random or magnitude"
        )
    size = config.sample_size or 32
    shape = (config.in_channels, *((size, size) if isinstance(size, int) else tuple(size)))
    autoencoder = getattr(model, "vqvae", None) or getattr(model, "vae", None)
    image_shape = shape
    if autoencoder is not None:
        factor = 2 ** (len(autoencoder.config.block_out_channels) - 1)
        image_shape = (autoencoder.config.in_channels, shape[1] * factor, shape[2] * factor)
    return DiffusionProcess(scheduler, shape, image_shape, autoencoder, _classes(model, denoiser))


def encode_images(autoencoder: Any, images: Tensor) -> Tensor:
    """Encode images in [-1, 1] to float32 latents; for an autoencoder that returns a distribution, to its mode."""
    output = autoencoder.encode(images.to(autoencoder.dtype))
    names = ("latents", "latent")  # attributes of the outputs of VQModel and AutoencoderDC
    deterministic = next((getattr(output, name) for name in names if hasattr(output, name)), None)
    latents: Tensor = output.latent_dist.mode() if deterministic is None else deterministic
    return latents.float()


def is_flow(scheduler: Any) -> bool:
    """Return whether a scheduler is one of flow matching: straight paths from noise to images."""
    return "FlowMatch" in type(scheduler).__name__ or bool(getattr(scheduler.config, "use_flow_sigmas", False))


SNR_LIMIT = 5.0


def min_snr_weights(scheduler: Any, timesteps: Tensor) -> Tensor:
    """Return min-SNR-5 loss weights for the scheduler's prediction type, (N,), float64 (Hang et al., ICCV 2023).

    min(SNR, 5) weighs an error of x_0. That is min(SNR, 5) / SNR for an error of the noise, min(SNR, 5) / (SNR + 1) for
    a velocity, and s^2 min(SNR, 5) for the velocity of a flow, with s the share of noise.
    """
    total = num_timesteps_of(scheduler)
    if is_flow(scheduler):
        share = (timesteps.double() + 1) / total
        return share.square() * ((1 - share) / share).square().clamp(max=SNR_LIMIT)
    alpha_bar = scheduler.alphas_cumprod.to(timesteps.device).double()[timesteps]
    ratio = (alpha_bar / (1 - alpha_bar)).clamp(min=1e-12)
    over = {"epsilon": ratio, "v_prediction": ratio + 1, "sample": torch.ones_like(ratio)}
    weights: Tensor = ratio.clamp(max=SNR_LIMIT) / over[scheduler.config.prediction_type]
    return weights


def num_timesteps_of(scheduler: Any) -> int:
    """Return T, the number of training timesteps of a scheduler."""
    return int(scheduler.config.num_train_timesteps)


def _classes(model: DiffusionPipeline | ModelMixin, denoiser: ModelMixin) -> Classes | None:
    config: Any = denoiser.config
    embedding = getattr(model, "class_embedding", None)
    if embedding is not None:

        def attend(labels: Tensor) -> Conditioning:
            return {"encoder_hidden_states": embedding.to(labels.device)(labels)}

        return Classes(embedding.null_class, embedding.null_class, attend)
    if getattr(config, "class_embed_type", None) in ("timestep", "identity"):
        raise ModelError(
            f"class_embed_type {config.class_embed_type!r} of {type(denoiser).__name__} is not supported; use "
            "criterion random or magnitude"
        )
    if "num_embeds_ada_norm" in config and "sample_size" in config:  # DiT: the last row is the null class
        number = int(config.num_embeds_ada_norm)
        return Classes(number, number, lambda labels: {"class_labels": labels})
    if getattr(config, "num_class_embeds", None):
        return Classes(config.num_class_embeds, None, lambda labels: {"class_labels": labels})
    if getattr(config, "cross_attention_dim", None) and type(denoiser).__name__ != "UNet2DModel":
        raise ModelError(
            f"the conditioning of {type(denoiser).__name__} in {type(model).__name__} is not supported; use criterion "
            "random or magnitude"
        )
    return None


def _shift(autoencoder: Any) -> float:
    return float(getattr(autoencoder.config, "shift_factor", None) or 0.0)
