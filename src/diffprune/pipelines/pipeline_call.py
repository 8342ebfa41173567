"""The call of a pipeline: which arguments it takes, and one that draws what prompts say."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.utils.loading_utils import load_image
from torch import Tensor

from diffprune.errors import DataError
from diffprune.pipelines.loading import denoiser_of
from diffprune.pipelines.prompts import Prompt

UNGUIDED = {"guidance_scale": 1.0}

IMAGES_AT_WILL = ("Flux2Pipeline", "Flux2KleinPipeline")
"""Pipelines whose call takes images too, and draws from texts alone where there are none."""

GIVEN_IMAGES = {"image", "images", "control_image"}
"""Arguments by which pipelines take images to draw from."""


def call_options(pipeline: Any) -> set[str]:
    """The names of the arguments that the pipeline's call knows."""
    return set(inspect.signature(type(pipeline).__call__).parameters)


def with_call_options(pipeline: Any, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the wanted arguments that the pipeline's call knows; None stands for its own default."""
    known = call_options(pipeline)
    return {name: value for name, value in wanted.items() if value is not None and name in known}


def takes_prompts(pipeline: Any) -> bool:
    """Whether a pipeline draws what a text says."""
    return "prompt" in call_options(pipeline)


def needs_images(pipeline: Any) -> bool:
    """Whether a pipeline draws from images that it is given."""
    return bool(call_options(pipeline) & GIVEN_IMAGES) and type(pipeline).__name__ not in IMAGES_AT_WILL


def takes_guidance(pipeline: Any) -> bool:
    """Whether the denoiser is told the strength of guidance, in place of a second pass without prompt."""
    return bool(getattr(denoiser_of(pipeline).config, "guidance_embeds", False))


def unguided(pipeline: Any, more: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call with guidance by a second pass switched off."""
    return {**more, **({} if takes_guidance(pipeline) else UNGUIDED)}


def run_call(
    pipeline: Any, prompts: Sequence[Prompt], generators: Sequence[torch.Generator], steps: int, more: Mapping[str, Any]
) -> Any:
    """The pipeline's own call, up to its latents unless `more` says otherwise; the generators stay as they are.

    prompts: of the same images, for pipelines differ in whether they take a list of these. Returns what it gives.
    """
    with torch.random.fork_rng():  # some pipelines draw from the global state beside their generators
        return pipeline(
            prompt=[prompt.text for prompt in prompts],
            generator=[copy_of(generator) for generator in generators],
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
    """What a pipeline drew of several images as one batch; raises DataError where they differ in size."""
    if len({part.shape[1:] for part in parts}) > 1:
        sizes = ", ".join(sorted({str(tuple(part.shape[1:])) for part in parts}))
        raise DataError(
            f"what is drawn from images of several sizes differs in shape ({sizes}); give images of one size, or, to "
            "sample, batch_size 1"
        )
    return torch.cat([*parts])


def copy_of(generator: torch.Generator) -> torch.Generator:
    """A generator in the same state, so that drawing from it leaves the other as it is."""
    again = torch.Generator(generator.device)
    again.set_state(generator.get_state())
    return again
