"""Class-conditional latent diffusion as a pipeline: diffusers has the parts and no pipeline of them.

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
    """One learned vector per class, and one more, the last, that stands for no class.

    num_classes: without that last one. dim: length of each vector, the cross-attention width of the denoiser.
    """

    def __init__(self, num_classes: int = 1000, dim: int = 512) -> None:
        cast(Any, super()).__init__()
        here: Any = self
        here.register_to_config(num_classes=num_classes, dim=dim)
        self.embedding = nn.Embedding(num_classes + 1, dim)

    @property
    def null_class(self) -> int:
        """The label that stands for no class."""
        return self.embedding.num_embeddings - 1

    def forward(self, labels: Tensor) -> Tensor:
        """(N,) labels -> (N, 1, dim): a sequence of one token to attend to."""
        tokens: Tensor = self.embedding(labels)[:, None]
        return tokens


class ClassConditionalLDMPipeline(DiffusionPipeline):
    """Draws images of given classes: denoises latents under classifier-free guidance and decodes them."""

    def __init__(
        self,
        vqvae: VQModel,
        unet: UNet2DConditionModel,
        class_embedding: ClassEmbedding,
        scheduler: DDIMScheduler,
    ) -> None:
        cast(Any, super()).__init__()
        here: Any = self
        here.register_modules(vqvae=vqvae, unet=unet, class_embedding=class_embedding, scheduler=scheduler)
        here.model_cpu_offload_seq = "class_embedding->unet->vqvae"

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
        """One image per label, each in 0 to num_classes - 1, or num_classes for an image of no given class.

        guidance_scale: s in eps = eps_null + s (eps_class - eps_null); at 1 the second pass is left out.
        eta: share of the ancestral noise, where the scheduler knows it. latents: the initial noise (N, C, H, W), drawn
        with `generator` when None. output_type: PIL images, array (N, H, W, 3) or tensor (N, 3, H, W) in 0 to 1, or
        the latents as they are. Raises OptionError for a label that is no class.
        """
        embedding, config = self.class_embedding, self.unet.config
        device, dtype = self._execution_device, self.unet.dtype
        labels = self._labels(class_labels).to(device)
        context = embedding(labels)
        guided = guidance_scale != 1
        if guided:
            context = torch.cat([embedding(torch.full_like(labels, embedding.null_class)), context])
        shape = (len(labels), config.in_channels, config.sample_size, config.sample_size)
        drawn = randn_tensor(shape, generator=generator, device=device, dtype=dtype) if latents is None else latents
        here = drawn.to(device, dtype) * self.scheduler.init_noise_sigma
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        known = inspect.signature(self.scheduler.step).parameters
        extra = {k: v for k, v in {"eta": eta, "generator": generator}.items() if k in known}
        for timestep in self.progress_bar(self.scheduler.timesteps):
            scaled = self.scheduler.scale_model_input(here, timestep)
            inputs = torch.cat([scaled, scaled]) if guided else scaled
            noise = self.unet(inputs, timestep, encoder_hidden_states=context).sample
            if guided:
                of_null, of_class = noise.chunk(2)
                noise = of_null + guidance_scale * (of_class - of_null)
            here = self.scheduler.step(noise, timestep, here, **extra).prev_sample
        images = here if output_type == "latent" else self._decoded(here, output_type)
        cast(Any, self).maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _labels(self, given: Sequence[int] | int) -> Tensor:
        labels = [given] if isinstance(given, int) else list(given)
        largest = self.class_embedding.null_class
        wrong = [label for label in labels if not (isinstance(label, int) and 0 <= label <= largest)]
        if wrong or not labels:
            raise OptionError(f"class_labels: got {wrong or labels}, expected whole numbers from 0 to {largest}")
        return torch.tensor(labels)

    def _decoded(self, latents: Tensor, output_type: str) -> Any:
        pixels = self.vqvae.decode(latents / self.vqvae.config.scaling_factor).sample
        images = (pixels / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return images
        array = images.cpu().permute(0, 2, 3, 1).float().numpy()
        return cast(Any, self).numpy_to_pil(array) if output_type == "pil" else array
