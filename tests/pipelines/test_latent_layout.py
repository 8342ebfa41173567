"""The way from images to a denoiser's latents is the pipeline's own way back, turned round."""

from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from torch import Tensor

from diffprune.errors import ModelError
from diffprune.pipelines.latent_layout import LatentLayout, find_layout
from diffprune.pipelines.pipeline_call import UNGUIDED
from diffprune.pipelines.prompts import Prompt
from diffprune.pipelines.recorder import recorded_scheduler
from tests.helpers.tiny_pipelines import tiny

SIZED: dict[str, Any] = {"height": 16, "width": 16}
CALLS: dict[str, dict[str, Any]] = {
    "sd": {}, "sdxl": {}, "sd3": {}, "flux": SIZED, "flux2": SIZED, "qwen": SIZED,
    "pixart": {**SIZED, "use_resolution_binning": False},
    "wan": {**SIZED, "num_frames": 1}, "ltx": {"height": 32, "width": 64, "num_frames": 1},
}  # fmt: skip


def images_for(layout: LatentLayout) -> Tensor:
    return torch.rand((2, 3, *layout.image_size), generator=torch.Generator().manual_seed(1)) * 2 - 1


def latents_of(autoencoder: Any, images: Tensor) -> Tensor:
    with torch.no_grad():
        return autoencoder.encode(images).latent_dist.mode()


def drawn_from(pipeline: Any, latents: Tensor, more: dict[str, Any]) -> Tensor:
    """What the pipeline itself makes of the latents that its last step gives, in -1 to 1."""
    with recorded_scheduler(pipeline, lambda _: latents) as (listener, _), torch.random.fork_rng():
        output = listener(prompt=["a cat"] * 2, num_inference_steps=2, output_type="pt", **more)
    pixels = torch.as_tensor(output.frames)[:, 0] if hasattr(output, "frames") else output.images
    return pixels * 2 - 1


@pytest.mark.parametrize("name", CALLS)
def test_the_pipeline_decodes_an_encoded_image_as_its_autoencoder_does(name: str) -> None:
    pipeline, more = tiny(name), CALLS[name]
    layout = find_layout(pipeline, Prompt("a red cat"), {**UNGUIDED, **more})
    images = images_for(layout)
    inputs = images[:, :, None] if name in ("wan", "ltx", "qwen") else images
    with torch.no_grad():
        expected = pipeline.vae.decode(latents_of(pipeline.vae, inputs)).sample
    expected = expected[:, :, 0] if expected.ndim == 5 else expected
    drawn = drawn_from(pipeline, layout.encode(images), more)
    assert drawn.shape == images.shape
    assert float((drawn - expected.clamp(-1, 1)).abs().max()) < 1e-4
    assert float(drawn.std()) > 0.01


def test_means_and_deviations_of_channels_are_those_of_the_autoencoder() -> None:
    mean, std = torch.tensor([0.1, -0.2, 0.3, 0.0]), torch.tensor([0.5, 2.0, 1.5, 0.9])
    pipeline = tiny("sdxl")
    pipeline.vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    layout = find_layout(pipeline, Prompt("a red cat"), UNGUIDED)
    images = images_for(layout)
    z, by_channel = latents_of(pipeline.vae, images), (1, 4, 1, 1)
    expected = (z - mean.view(by_channel)) * pipeline.vae.config.scaling_factor / std.view(by_channel)
    assert torch.allclose(layout.encode(images), expected, atol=1e-5)


def test_latents_are_packed_as_the_pipeline_packs_its_own() -> None:
    pipeline = tiny("flux")
    layout = find_layout(pipeline, Prompt("a red cat"), {"height": 16, "width": 32})
    assert layout.image_size == (16, 32)
    images, config = images_for(layout), pipeline.vae.config
    z = (latents_of(pipeline.vae, images) - config.shift_factor) * config.scaling_factor
    assert torch.allclose(layout.encode(images), FluxPipeline._pack_latents(z, *z.shape), atol=1e-5)


def test_a_decoding_that_cannot_be_turned_round_is_refused() -> None:
    mixing = tiny("ltx")
    mixing.vae.register_to_config(timestep_conditioning=True)  # noise is mixed in before it decodes
    more = {**CALLS["ltx"], "decode_timestep": 0.5}
    with pytest.raises(ModelError, match=r"LTXPipeline.*cannot invert .*use data `generated`"):
        find_layout(mixing, Prompt("a red cat"), more)
    blind = tiny("sd")
    blind.vae = None
    with pytest.raises(ModelError, match="has no autoencoder"):
        find_layout(blind, Prompt("a red cat"), UNGUIDED)


def test_images_do_not_serve_a_model_of_several_frames() -> None:
    layout = find_layout(tiny("wan"), Prompt("a red cat"), {**SIZED, "num_frames": 5})
    with pytest.raises(ModelError, match=r"use data `generated`.*num_frames 1"):
        layout.encode(images_for(layout))


@pytest.mark.parametrize("name", ["sd3", "qwen", "wan"])
def test_a_pipeline_in_half_precision_has_the_same_layout(name: str) -> None:
    more = {**UNGUIDED, **CALLS[name]}
    whole = find_layout(tiny(name), Prompt("a red cat"), more)
    half = find_layout(tiny(name).to(torch.bfloat16), Prompt("a red cat"), more)
    assert torch.equal(whole.order, half.order)
    assert torch.allclose(whole.scale, half.scale)
    assert torch.allclose(whole.shift, half.shift)
