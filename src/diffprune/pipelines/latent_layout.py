"""From images to the latents that a text-conditioned denoiser takes: the pipeline's own decoding, turned round.

How latents are scaled, shifted and packed differs from family to family; every pipeline undoes it before its
autoencoder decodes. What that does is found by sending numbers through it: nothing here is about a single family.
"""

import copy
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from diffprune.errors import ModelError
from diffprune.pipelines.diffusion import encoded
from diffprune.pipelines.pipeline_call import run_call, unguided
from diffprune.pipelines.prompts import Prompt
from diffprune.pipelines.recorder import listening, steps_of_recording

AUTOENCODERS = ("vae", "vqvae", "movq")
"""Names under which pipelines hold what decodes their latents."""

_BASE = 4096
"""Of the digits that number the elements of a latent: exact in float32 after scaling and shifting."""

_ROWS = 5

REMEDY = "give data `generated`: images that the model draws itself"


@dataclass(frozen=True)
class LatentLayout:
    """The denoiser's latents x and the autoencoder's z of one image: z.flatten() = scale * x.flatten()[order] + shift.

    shape: of x. order, scale, shift: in the shape of z. image_size: (height, width) in pixels.
    """

    autoencoder: ModelMixin
    shape: torch.Size
    order: Tensor
    scale: Tensor
    shift: Tensor
    image_size: tuple[int, int]

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] -> x, float32 (N, ...), where the images are."""
        inputs = images[:, :, None] if self.order.ndim == 4 else images  # of video autoencoders an image is one frame
        z = encoded(self.autoencoder, inputs)
        if z.shape[1:] != self.order.shape:
            raise ModelError(
                f"the autoencoder makes {tuple(z.shape[1:])} of an image and the pipeline decodes "
                f"{tuple(self.order.shape)}; {REMEDY} (or, of a video model, num_frames 1)"
            )
        return self.from_autoencoder(z)

    def from_autoencoder(self, z: Tensor) -> Tensor:
        """Z (N, ...) -> x (N, ...)."""
        values = ((z - self.shift.to(z.device)) / self.scale.to(z.device)).flatten(1)
        x = torch.empty_like(values)
        x[:, self.order.to(z.device).flatten()] = values
        latents: Tensor = x.unflatten(1, self.shape)
        return latents


@torch.no_grad()
def find_layout(pipeline: Any, prompt: Prompt, more: Mapping[str, Any]) -> LatentLayout:
    """Find how a pipeline turns its denoiser's latents into what its autoencoder decodes.

    One run of a few steps: in place of its latents the pipeline gets zeros, a constant, and the number of each
    element as two digits; what reaches the autoencoder tells shift, scale and order. A row of noise checks them.
    more: further arguments of its call. Raises ModelError where that is not one scaled and shifted element for each.
    """
    name = next((name for name in AUTOENCODERS if getattr(pipeline, name, None) is not None), None)
    if name is None:
        raise ModelError(f"{type(pipeline).__name__} has no autoencoder ({', '.join(AUTOENCODERS)}); {REMEDY}")
    autoencoder, (x, z) = getattr(pipeline, name), _sent_and_arrived(pipeline, name, prompt, more)
    unknown = ModelError(
        f"how {type(pipeline).__name__} turns the latents of its denoiser, {tuple(x.shape[1:])}, into those that its "
        f"autoencoder decodes, {tuple(z.shape[1:])}, cannot be turned round; {REMEDY}"
    )
    if x[0].numel() != z[0].numel():
        raise unknown
    shift, scale = z[0], (z[1] - z[0]) / _BASE
    low, high = ((z[2:4] - shift) / scale).round().long()
    layout = LatentLayout(autoencoder, x.shape[1:], low + _BASE * high, scale, shift, (0, 0))
    numbers = layout.order.flatten().sort().values
    if not torch.equal(numbers, torch.arange(len(numbers), device=numbers.device)):
        raise unknown
    if not torch.allclose(layout.from_autoencoder(z[4:]), x[4:], rtol=1e-3, atol=1e-4):
        raise unknown
    images: Tensor = autoencoder.decode(z[4:].to(autoencoder.dtype)).sample
    return replace(layout, image_size=(int(images.shape[-2]), int(images.shape[-1])))


class _Arrived(Exception):  # noqa: N818 - nothing is wrong
    """Ends a run of a pipeline whose autoencoder has been given what there was to see."""


def _sent_and_arrived(pipeline: Any, name: str, prompt: Prompt, more: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """What a run of the pipeline gets for latents, and what it has its autoencoder decode: five rows each."""
    sent: list[Tensor] = []
    arrived: list[Tensor] = []

    def put(latents: Tensor) -> Tensor:
        sent.append(_numbers(latents))
        return sent[-1]

    def decode(z: Tensor, *args: Any, **kwargs: Any) -> None:
        arrived.append(z)
        raise _Arrived

    stand_in = copy.copy(getattr(pipeline, name))
    kind = type(stand_in)  # pipelines cast latents to its dtype: numbers need more digits than bfloat16 has
    facts = {"dtype": property(lambda _: torch.float32), "__module__": kind.__module__}
    stand_in.__class__ = type(kind.__name__, (kind,), facts)
    stand_in.decode = decode
    generators = [torch.Generator().manual_seed(row) for row in range(_ROWS)]  # noise that is mixed in shows
    with listening(pipeline, put) as (listener, _), suppress(_Arrived):
        listener.register_modules(**{name: stand_in})
        asked = [prompt] * _ROWS
        decoded = {**unguided(pipeline, more), "output_type": "pt"}
        run_call(listener, asked, generators, steps_of_recording(asked), decoded)
    if not sent or not arrived or len(sent[-1]) != _ROWS or len(arrived[0]) != _ROWS:
        raise ModelError(f"{type(pipeline).__name__} does not decode its latents row by row; {REMEDY}")
    return sent[-1], arrived[0].float()


def _numbers(latents: Tensor) -> Tensor:
    """Rows in the shape of latents: zeros, a constant, the low and the high digits of the elements' numbers, noise."""
    numbers = torch.arange(latents[0].numel()).view(latents.shape[1:])
    noise = torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(0))
    zeros = torch.zeros_like(noise)
    rows = torch.stack([zeros, zeros + _BASE, (numbers % _BASE).float(), (numbers // _BASE).float(), noise])
    return rows.to(latents.device)
