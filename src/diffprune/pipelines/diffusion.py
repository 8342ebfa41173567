"""The diffusion process around a denoiser: its noise schedule, the space it works in, and what it is told."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor

from diffprune.errors import ModelError
from diffprune.pipelines.loading import denoiser_of, scheduler_of
from diffprune.pipelines.pipeline_call import call_options, takes_prompts

Conditioning = Mapping[str, Tensor]
"""What a denoiser is told beside x_t and t: keyword arguments of its forward, one row per image."""

UNCONDITIONAL: Conditioning = {}


@dataclass(frozen=True)
class Classes:
    """The classes a denoiser is told.

    null_class: the label that stands for no class, for guidance; None where the model has none.
    embed: labels (N,) -> condition.
    """

    num_classes: int
    null_class: int | None
    embed: Callable[[Tensor], Conditioning]


@dataclass(frozen=True)
class DiffusionProcess:
    """How a denoiser is used.

    scheduler: a diffusers scheduler, for its noise schedule and prediction type.
    shape: (C, H, W) of x_t. image_shape: (C, H, W) of the images. Both empty for a text-conditioned model.
    autoencoder: takes images to the latents that are noised, and back; None where pixels are.
    classes: None for a model that is not conditioned on classes.
    pipeline: of a text-conditioned model, whose own call says how it is used; None for others.
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
        """Clean images (N, C, H, W) in [-1, 1] -> x_0."""
        if self.autoencoder is None:
            return images
        autoencoder: Any = self.autoencoder
        latents = encoded(autoencoder.to(images.device), images)
        return (latents - _shift(autoencoder)) * float(autoencoder.config.scaling_factor)

    @torch.no_grad()
    def decode(self, x_0: Tensor) -> Tensor:
        """x_0 -> images (N, C, H, W), about in [-1, 1]."""
        if self.autoencoder is None:
            return x_0
        autoencoder: Any = self.autoencoder
        latents = x_0 / autoencoder.config.scaling_factor + _shift(autoencoder)
        images: Tensor = autoencoder.to(x_0.device).decode(latents.to(autoencoder.dtype)).sample
        return images.float()


def process_of(model: DiffusionPipeline | ModelMixin) -> DiffusionProcess:
    """The process of a pipeline.

    Raises ModelError for a bare denoiser, which has no noise schedule, and for conditions that are not served.
    """
    denoiser, scheduler = denoiser_of(model), scheduler_of(model)
    config: Any = denoiser.config
    if not is_flow(scheduler) and not (
        hasattr(scheduler, "alphas_cumprod") and hasattr(scheduler.config, "prediction_type")
    ):
        raise ModelError(
            f"{type(scheduler).__name__} has no table of noise levels (alphas_cumprod) or no prediction type; "
            "served are the schedules of DDPM, such as DDPMScheduler, DDIMScheduler or DPMSolverMultistepScheduler, "
            "and of flow matching"
        )
    if takes_prompts(model):
        return DiffusionProcess(scheduler, (), (), pipeline=model)
    if "image" in call_options(model):
        raise ModelError(
            f"{type(model).__name__} draws from images that it is given and from no text, which is not served; plan "
            "and prune it with criterion random or magnitude"
        )
    if is_flow(scheduler):
        raise ModelError(f"{type(scheduler).__name__} is a flow; flows are served with text-conditioned pipelines")
    if config.out_channels not in (config.in_channels, 2 * config.in_channels):
        raise ModelError(
            f"the {type(denoiser).__name__} takes {config.in_channels} channels and gives {config.out_channels}: "
            "extra inputs are not served; plan and prune it with criterion random or magnitude"
        )
    size = config.sample_size or 32
    shape = (config.in_channels, *((size, size) if isinstance(size, int) else tuple(size)))
    autoencoder = getattr(model, "vqvae", None) or getattr(model, "vae", None)
    image_shape = shape
    if autoencoder is not None:
        factor = 2 ** (len(autoencoder.config.block_out_channels) - 1)
        image_shape = (autoencoder.config.in_channels, shape[1] * factor, shape[2] * factor)
    return DiffusionProcess(scheduler, shape, image_shape, autoencoder, _classes(model, denoiser))


def encoded(autoencoder: Any, images: Tensor) -> Tensor:
    """What an autoencoder makes of images in [-1, 1], in float32; of a distribution its mode."""
    output = autoencoder.encode(images.to(autoencoder.dtype))
    names = ("latents", "latent")  # of VQModel and of AutoencoderDC
    found = next((getattr(output, name) for name in names if hasattr(output, name)), None)
    latents: Tensor = output.latent_dist.mode() if found is None else found
    return latents.float()


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler is one of flow matching: straight paths from noise to images."""
    return "FlowMatch" in type(scheduler).__name__ or bool(getattr(scheduler.config, "use_flow_sigmas", False))


SNR_LIMIT = 5.0


def min_snr_weights(scheduler: Any, timesteps: Tensor) -> Tensor:
    """min(SNR, 5), the weight of an error in x_0, as the weight of an error in what is predicted: (N,), float64.

    So an error of the noise counts min(SNR, 5) / SNR, one of a velocity min(SNR, 5) / (SNR + 1), one of a flow's
    velocity s^2 min(SNR, 5) with s the share of noise (Hang et al., ICCV 2023).
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
    """T, the number of timesteps that a scheduler's models were trained with."""
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
            f"{type(denoiser).__name__} is told class_embed_type {config.class_embed_type!r}, which is not served; "
            "plan and prune it with criterion random or magnitude"
        )
    if "num_embeds_ada_norm" in config and "sample_size" in config:  # DiT: one more row stands for no class
        number = int(config.num_embeds_ada_norm)
        return Classes(number, number, lambda labels: {"class_labels": labels})
    if getattr(config, "num_class_embeds", None):
        return Classes(config.num_class_embeds, None, lambda labels: {"class_labels": labels})
    if getattr(config, "cross_attention_dim", None) and type(denoiser).__name__ != "UNet2DModel":
        raise ModelError(
            f"{type(denoiser).__name__} of a {type(model).__name__} takes conditions that are not served yet (text, "
            "images); plan and prune it with criterion random or magnitude"
        )
    return None


def _shift(autoencoder: Any) -> float:
    return float(getattr(autoencoder.config, "shift_factor", None) or 0.0)
