"""Pipeline of class-conditional latent diffusion, which diffusers has the components of but no pipeline.

Source: Rombach et al. 2022, section 4.3 (class embedding by cross-attention); Ho and Salimans 2022, equation 6
(classifier-free guidance).
"""

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from diffprune.errors import OptionError

if TYPE_CHECKING:
    _Model = ModelMixin  # the annotations of diffusers' two mixins contradict each other
else:

    class _Model(ModelMixin, ConfigMixin):
        pass


class ClassEmbedding(_Model):
    """One learned vector per class, and a last one for the null class.

    num_classes: without the null class. dim: length of each vector, the cross-attention width of the denoiser.
    """

    def __init__(self, num_classes: int = 1000, dim: int = 512) -> None:
        cast(Any, super()).__init__()
        model: Any = self
        model.register_to_config(num_classes=num_classes, dim=dim)
        self.embedding = nn.Embedding(num_classes + 1, dim)

    @property
    def null_class(self) -> int:
        """Label of the null class, for unconditional output."""
        return self.embedding.num_embeddings - 1

    def forward(self, labels: Tensor) -> Tensor:
        """Embed labels (N,) as sequences of one token for cross-attention, (N, 1, dim)."""
        tokens: Tensor = self.embedding(labels)[:, None]
        return tokens


class ClassConditionalLDMPipeline(DiffusionPipeline):
    """Sample images of chosen classes: denoise latents with classifier-free guidance and decode them."""

    def __init__(
        self,
        vqvae: VQModel,
        unet: UNet2DConditionModel,
        class_embedding: ClassEmbedding,
        scheduler: DDIMScheduler,
    ) -> None:
        cast(Any, super()).__init__()
        pipeline: Any = self
        pipeline.register_modules(vqvae=vqvae, unet=unet, class_embedding=class_embedding, scheduler=scheduler)
        pipeline.model_cpu_offload_seq = "class_embedding->unet->vqvae"

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int] | int,
        *,
        guidance_scale: float = 3.0,
        num_inference_steps: int = 50,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Sample one image per label: 0 to num_classes - 1, or num_classes for unconditional sampling.

        guidance_scale: s in eps = eps_null + s (eps_class - eps_null); 1 skips the unconditional pass.
        eta: share of the ancestral noise, for schedulers that have it. latents: the initial noise (N, C, H, W); None
        draws it with `generator`. output_type: PIL images, array (N, H, W, 3) or tensor (N, 3, H, W) in [0, 1], or
        latents. Raises OptionError for a label out of range.
        """
        embedding, config = self.class_embedding, self.unet.config
        device, dtype = self._execution_device, self.unet.dtype
        labels = self._labels(class_labels).to(device)
        context = embedding(labels)
        guided = guidance_scale != 1
        if guided:
            context = torch.cat([embedding(torch.full_like(labels, embedding.null_class)), context])
        shape = (len(labels), config.in_channels, config.sample_size, config.sample_size)
        noise = randn_tensor(shape, generator=generator, device=device, dtype=dtype) if latents is None else latents
        x_t = noise.to(device, dtype) * self.scheduler.init_noise_sigma
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        accepted = inspect.signature(self.scheduler.step).parameters
        extra = {k: v for k, v in {"eta": eta, "generator": generator}.items() if k in accepted}
        for timestep in self.progress_bar(self.scheduler.timesteps):
            scaled = self.scheduler.scale_model_input(x_t, timestep)
            inputs = torch.cat([scaled, scaled]) if guided else scaled
            eps = self.unet(inputs, timestep, encoder_hidden_states=context).sample
            if guided:
                eps_null, eps_class = eps.chunk(2)
                eps = eps_null + guidance_scale * (eps_class - eps_null)
            x_t = self.scheduler.step(eps, timestep, x_t, **extra).prev_sample
        images = x_t if output_type == "latent" else self._decode(x_t, output_type)
        cast(Any, self).maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _labels(self, class_labels: Sequence[int] | int) -> Tensor:
        labels = [class_labels] if isinstance(class_labels, int) else list(class_labels)
        largest = self.class_embedding.null_class
        wrong = [label for label in labels if not (isinstance(label, int) and 0 <= label <= largest)]
        if wrong or not labels:
            raise OptionError(f"class_labels: got {wrong or labels}, expected integers from 0 to {largest}")
        return torch.tensor(labels)

    def _decode(self, latents: Tensor, output_type: str) -> Any:
        pixels = self.vqvae.decode(latents / self.vqvae.config.scaling_factor).sample
        images = (pixels / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return images
        array = images.cpu().permute(0, 2, 3, 1).float().numpy()
        return cast(Any, self).numpy_to_pil(array) if output_type == "pil" else array
