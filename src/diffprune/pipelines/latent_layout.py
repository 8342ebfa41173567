"""Encode images into the latents of a text-conditioned denoiser by inverting the pipeline's own decoding.

Families scale, shift and pack latents differently, and every pipeline undoes it before its autoencoder decodes. The
mapping is inferred from probe values sent through the pipeline, so that no family needs code of its own here.
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
from diffprune.pipelines.diffusion import encode_images
from diffprune.pipelines.pipeline_call import run_call, unguided
from diffprune.pipelines.prompts import Prompt
from diffprune.pipelines.recorder import recorded_scheduler, recording_steps

AUTOENCODERS = ("vae", "vqvae", "movq")
"""Names of the component that decodes a pipeline's latents."""

_BASE = 4096
"""Base of the two digits of an element's index: exact in float32 after scaling and shifting."""

_NUM_PROBES = 5

REMEDY = "use data `generated`: images that the model samples itself"


@dataclass(frozen=True)
class LatentLayout:
    """Mapping of the denoiser's latents x to the autoencoder's z, for one image.

    z.flatten() = scale * x.flatten()[order] + shift. shape: of x. order, scale, shift: in the shape of z.
    image_size: (height, width) in pixels.
    """

    autoencoder: ModelMixin
    shape: torch.Size
    order: Tensor
    scale: Tensor
    shift: Tensor
    image_size: tuple[int, int]

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode images (N, 3, H, W) in [-1, 1] to x (N, ...), float32, on the images' device."""
        inputs = images[:, :, None] if self.order.ndim == 4 else images  # a video autoencoder gets one frame
        z = encode_images(self.autoencoder, inputs)
        if z.shape[1:] != self.order.shape:
            raise ModelError(
                f"the autoencoder encodes an image as {tuple(z.shape[1:])}, the pipeline decodes "
                f"{tuple(self.order.shape)}; {REMEDY} (or, for a video model, num_frames 1)"
            )
        return self.from_autoencoder(z)

    def from_autoencoder(self, z: Tensor) -> Tensor:
        """Convert the autoencoder's z (N, ...) to the denoiser's x (N, ...)."""
        values = ((z - self.shift.to(z.device)) / self.scale.to(z.device)).flatten(1)
        x = torch.empty_like(values)
        x[:, self.order.to(z.device).flatten()] = values
        latents: Tensor = x.unflatten(1, self.shape)
        return latents


@torch.no_grad()
def find_layout(pipeline: Any, prompt: Prompt, more: Mapping[str, Any]) -> LatentLayout:
    """Infer how a pipeline converts its denoiser's latents to the latents that its autoencoder decodes.

    In one short run, probes replace the latents: zeros, a constant, and the index of each element as two digits. The
    autoencoder's input then shows shift, scale and order; a probe of noise verifies them.
    more: further arguments of the pipeline's call. Raises ModelError if the conversion is not a permutation with a
    scale and a shift per element.
    """
    name = next((name for name in AUTOENCODERS if getattr(pipeline, name, None) is not None), None)
    if name is None:
        raise ModelError(f"{type(pipeline).__name__} has no autoencoder ({', '.join(AUTOENCODERS)}); {REMEDY}")
    autoencoder, (x, z) = getattr(pipeline, name), _probe(pipeline, name, prompt, more)
    not_invertible = ModelError(
        f"{type(pipeline).__name__}: cannot invert how latents of the denoiser, {tuple(x.shape[1:])}, become latents "
        f"of the autoencoder, {tuple(z.shape[1:])}; {REMEDY}"
    )
    if x[0].numel() != z[0].numel():
        raise not_invertible
    shift, scale = z[0], (z[1] - z[0]) / _BASE
    low, high = ((z[2:4] - shift) / scale).round().long()
    layout = LatentLayout(autoencoder, x.shape[1:], low + _BASE * high, scale, shift, (0, 0))
    numbers = layout.order.flatten().sort().values
    if not torch.equal(numbers, torch.arange(len(numbers), device=numbers.device)):
        raise not_invertible
    if not torch.allclose(layout.from_autoencoder(z[4:]), x[4:], rtol=1e-3, atol=1e-4):
        raise not_invertible
    images: Tensor = autoencoder.decode(z[4:].to(autoencoder.dtype)).sample
    return replace(layout, image_size=(int(images.shape[-2]), int(images.shape[-1])))


class _ProbesReceived(Exception):  # noqa: N818 - not an error
    """Stops a pipeline when its autoencoder has received the probes."""


def _probe(pipeline: Any, name: str, prompt: Prompt, more: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Run the pipeline with probes as latents; return the probes and the autoencoder's input, five rows each."""
    sent: list[Tensor] = []
    received: list[Tensor] = []

    def send_probes(latents: Tensor) -> Tensor:
        sent.append(_probes(latents))
        return sent[-1]

    def decode(z: Tensor, *args: Any, **kwargs: Any) -> None:
        received.append(z)
        raise _ProbesReceived

    stand_in = copy.copy(getattr(pipeline, name))
    kind = type(stand_in)  # pipelines cast latents to its dtype: the probes need more digits than bfloat16 has
    facts = {"dtype": property(lambda _: torch.float32), "__module__": kind.__module__}
    stand_in.__class__ = type(kind.__name__, (kind,), facts)
    stand_in.decode = decode
    generators = [torch.Generator().manual_seed(row) for row in range(_NUM_PROBES)]  # exposes noise added per row
    with recorded_scheduler(pipeline, send_probes) as (copied, _), suppress(_ProbesReceived):
        copied.register_modules(**{name: stand_in})
        prompts = [prompt] * _NUM_PROBES
        options = {**unguided(pipeline, more), "output_type": "pt"}
        run_call(copied, prompts, generators, recording_steps(prompts), options)
    if not sent or not received or len(sent[-1]) != _NUM_PROBES or len(received[0]) != _NUM_PROBES:
        raise ModelError(f"{type(pipeline).__name__} does not decode its latents row by row; {REMEDY}")
    return sent[-1], received[0].float()


def _probes(latents: Tensor) -> Tensor:
    """Return rows in the shape of latents: zeros, a constant, low digits and high digits of the indices, noise."""
    numbers = torch.arange(latents[0].numel()).view(latents.shape[1:])
    noise = torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(0))
    zeros = torch.zeros_like(noise)
    rows = torch.stack([zeros, zeros + _BASE, (numbers % _BASE).float(), (numbers // _BASE).float(), noise])
    return rows.to(latents.device)
