"""Sampling of text-conditioned models by the call of their own pipeline."""

import copy
from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from diffprune.errors import ModelError, OptionError
from diffprune.options import PromptOptions, SampleOptions
from diffprune.pipelines.denoiser_access import denoiser_component
from diffprune.pipelines.diffusion import is_flow
from diffprune.pipelines.pipeline_call import (
    IMAGE_ARGUMENTS,
    call_options,
    needs_images,
    run_call,
    together,
    with_call_options,
)
from diffprune.pipelines.prompts import Prompt, by_images, read_prompts
from diffprune.sampling.scheduler_sampling import OWN, scheduler_named

UNSUPPORTED = ("sampler", "grid", "eta", "classes", "per_class", "sequence", "interpolate")
"""Options of unconditional and class-conditional models, not supported here."""


def check_prompts(pipeline: Any, options: SampleOptions) -> list[Prompt]:
    """Return the prompts of a sampling run; raises OptionError or ModelError for unsupported options."""
    unsupported = [name for name in UNSUPPORTED if name in options.model_fields_set]
    lines = []
    if options.prompts is None:
        lines.append(f"  prompts: missing; {type(pipeline).__name__} needs a file with one prompt per line")
    unknown = with_unknown(pipeline, options)
    if unknown:
        lines.append(f"  {', '.join(unknown)}: not supported by {type(pipeline).__name__}; leave them out")
    if options.negative_prompt is not None and "true_cfg_scale" in call_options(pipeline):
        lines.append(
            f"  negative_prompt: {type(pipeline).__name__} supports one only with true_cfg_scale; leave it out"
        )
    if options.scheduler is not None:
        named = scheduler_named(options.scheduler, pipeline.scheduler)
        if is_flow(named) != is_flow(pipeline.scheduler):
            lines.append(
                f"  scheduler: the model was trained with {type(pipeline.scheduler).__name__}, and "
                f"{options.scheduler} is for {'flows' if is_flow(named) else 'diffusion, not for flows'}"
            )
    if unsupported:
        lines.append(
            f"  {', '.join(unsupported)}: not supported by the call of {type(pipeline).__name__}; leave them out "
            "(`scheduler` and `steps` are supported)"
        )
    if lines:
        raise OptionError("this model is conditioned on text:\n" + "\n".join(lines))
    check_text_encoder(pipeline)
    assert options.prompts is not None
    prompts = read_prompts(options.prompts)
    check_images(pipeline, prompts)
    return prompts


def check_images(pipeline: Any, prompts: Sequence[Prompt]) -> None:
    """Raise OptionError for prompts without the images that a pipeline needs, or with images it does not take."""
    name, parameters = type(pipeline).__name__, call_options(pipeline)
    unknown = {argument for prompt in prompts for argument in prompt.images} - parameters
    if unknown:
        raise OptionError(f"prompts: {name} takes no {', '.join(sorted(unknown))}; leave these images out")
    masked = {"mask_image"} & parameters
    if needs_images(pipeline) and not all(
        p.images.keys() & IMAGE_ARGUMENTS and p.images.keys() >= masked for p in prompts
    ):
        taken = sorted(parameters & IMAGE_ARGUMENTS | masked)
        row = ", ".join(f'"{argument}_file_name": "{argument}.png"' for argument in taken)
        raise OptionError(
            f"prompts: {name} needs input images ({', '.join(taken)}); write rows such as "
            f'{{"text": "...", {row}}}, one per line, in a .jsonl file of prompts or in the '
            "metadata.jsonl of an image folder"
        )


def with_unknown(pipeline: Any, options: PromptOptions) -> list[str]:
    """Return the names of options set by the user that the pipeline's call does not take."""
    names = ("height", "width", "num_frames", "guidance_scale", "negative_prompt")
    values = {name: value for name in names if (value := getattr(options, name, None)) is not None}
    return [name for name in values if name not in with_call_options(pipeline, values)]


def check_text_encoder(pipeline: Any) -> None:
    """Raise ModelError for a pipeline that was loaded without a text encoder or tokenizer."""
    if not any(c is not None for name, c in pipeline.components.items() if name.startswith("text_encoder")):
        raise ModelError("the pipeline has no text encoder, which prompts need; load a pipeline with one")
    optional = set(getattr(pipeline, "_optional_components", ()))
    for name, component in pipeline.components.items():
        if component is None and name.startswith(("text_encoder", "tokenizer")) and name not in optional:
            raise ModelError(f"the pipeline has no {name}, which prompts need; load a pipeline with one")


@torch.no_grad()
def draw_by_pipeline(
    pipeline: Any, denoiser: nn.Module, prompts: Sequence[Prompt], generators: Sequence[torch.Generator],
    options: SampleOptions, device: torch.device,
) -> list[Tensor]:  # fmt: skip
    """Draw one image or video per prompt; returns its frames, each uint8 (N, C, H, W), one frame for images.

    denoiser: replaces the pipeline's. Guidance and size are the pipeline's defaults unless the options set them.
    """
    copied = copy.copy(pipeline)
    replaced = {
        denoiser_component(pipeline): denoiser,
        "scheduler": scheduler_named(options.scheduler or OWN, pipeline.scheduler),
    }
    copied.register_modules(**replaced)
    copied.set_progress_bar_config(disable=True)
    copied.to(device)
    parts, remaining = [], iter(generators)
    for batch in by_images(prompts):
        arguments: dict[str, Any] = {"guidance_scale": options.guidance_scale, **options.call(), "output_type": "pt"}
        if options.negative_prompt is not None:
            arguments["negative_prompt"] = [options.negative_prompt] * len(batch)
        parts.append(_frames(run_call(copied, batch, list(islice(remaining, len(batch))), options.steps, arguments)))
    return [together(frames) for frames in zip(*parts, strict=True)]


def _frames(output: Any) -> list[Tensor]:
    if not hasattr(output, "frames"):
        return [_pixels(output.images)]
    return [_pixels(frame) for frame in torch.as_tensor(output.frames).transpose(0, 1)]


def _pixels(images: Tensor) -> Tensor:
    if not bool(images.isfinite().all()):
        raise ModelError("the sampled images are not finite: the weights are damaged, or their dtype is too narrow")
    return (images.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
