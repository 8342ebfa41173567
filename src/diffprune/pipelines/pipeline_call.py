"""Call a pipeline with prompts, and inspect the arguments that its call accepts."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.utils.loading_utils import load_image
from torch import Tensor

from diffprune.errors import DataError
from diffprune.pipelines.denoiser_access import denoiser_of
from diffprune.pipelines.prompts import Prompt

UNGUIDED = {"guidance_scale": 1.0}

OPTIONAL_IMAGES = ("Flux2Pipeline", "Flux2KleinPipeline")
"""Pipelines with an image argument that also work with a text only."""

IMAGE_ARGUMENTS = {"image", "images", "control_image"}
"""Arguments of pipeline calls that take input images."""


def call_options(pipeline: Any) -> set[str]:
    """Return the names of the arguments of a pipeline's call."""
    return set(inspect.signature(type(pipeline).__call__).parameters)


def with_call_options(pipeline: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that the pipeline's call accepts; None means the pipeline's default and is dropped."""
    accepted = call_options(pipeline)
    return {name: value for name, value in arguments.items() if value is not None and name in accepted}


def takes_prompts(pipeline: Any) -> bool:
    """Return whether a pipeline is conditioned on text."""
    return "prompt" in call_options(pipeline)


def needs_images(pipeline: Any) -> bool:
    """Return whether a pipeline requires input images."""
    return bool(call_options(pipeline) & IMAGE_ARGUMENTS) and type(pipeline).__name__ not in OPTIONAL_IMAGES


def takes_guidance(pipeline: Any) -> bool:
    """Return whether the guidance scale is an input of the denoiser, instead of a second, unconditional pass."""
    return bool(getattr(denoiser_of(pipeline).config, "guidance_embeds", False))


def unguided(pipeline: Any, more: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call without classifier-free guidance, so that each step is one forward pass."""
    return {**more, **({} if takes_guidance(pipeline) else UNGUIDED)}


def run_call(
    pipeline: Any, prompts: Sequence[Prompt], generators: Sequence[torch.Generator], steps: int, more: Mapping[str, Any]
) -> Any:
    """Call a pipeline and return its output: latents, unless `more` sets `output_type`.

    prompts: all with the same images, because not every pipeline accepts a list of images. The state of `generators`
    does not change.
    """
    with torch.random.fork_rng():  # some pipelines also use the global random state
        return pipeline(
            prompt=[prompt.text for prompt in prompts],
            generator=[_clone(generator) for generator in generators],
            num_inference_steps=steps,
            **with_call_options(pipeline, {"output_type": "latent", **more}),
            **{name: _image(file) for name, file in prompts[0].images.items()},
        )


def _image(file: Path) -> Any:
    try:
        return load_image(str(file))
    except Exception as error:  # Pillow raises a different class for each way a file can be broken
        raise DataError(f"cannot read the image {file}: {error}") from error


def together(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate the outputs of several calls; raise DataError if they differ in size."""
    if len({part.shape[1:] for part in parts}) > 1:
        sizes = ", ".join(sorted({str(tuple(part.shape[1:])) for part in parts}))
        raise DataError(
            f"input images of several sizes lead to outputs of different shapes ({sizes}); use images of one size, or "
            "batch_size 1 for sampling"
        )
    return torch.cat([*parts])


def _clone(generator: torch.Generator) -> torch.Generator:
    clone = torch.Generator(generator.device)
    clone.set_state(generator.get_state())
    return clone
