"""Get and replace the denoiser and the scheduler of a pipeline."""

import copy
from typing import Any, cast

from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import nn

from diffprune.artifact.preconditions import check_unwrapped
from diffprune.errors import ModelError

DENOISER_COMPONENTS = ("unet", "transformer")


def denoiser_of(model: DiffusionPipeline | ModelMixin) -> ModelMixin:
    """Return the denoiser of a pipeline, or the denoiser itself; raise ModelError if it is inside a wrapper."""
    check_unwrapped(model)
    if isinstance(model, nn.Module):
        return model
    return cast(ModelMixin, getattr(model, denoiser_component(model)))


def denoiser_component(pipeline: DiffusionPipeline) -> str:
    """Return the name of a pipeline's denoiser component; raise ModelError if there is none."""
    for name in DENOISER_COMPONENTS:
        check_unwrapped(getattr(pipeline, name, None))
        if isinstance(getattr(pipeline, name, None), ModelMixin):
            return name
    raise ModelError(f"{type(pipeline).__name__} has no denoiser: none of {', '.join(DENOISER_COMPONENTS)}")


def with_denoiser(pipeline: Any, denoiser: ModelMixin) -> Any:
    """Return a copy of a pipeline with another denoiser; it shares all other components."""
    changed = copy.copy(pipeline)
    changed.register_modules(**{denoiser_component(changed): denoiser})
    return changed


def scheduler_of(model: DiffusionPipeline | ModelMixin) -> Any:
    """Return the scheduler of a pipeline; raise ModelError for a bare denoiser."""
    scheduler = getattr(model, "scheduler", None)
    if scheduler is None:
        raise ModelError(f"a bare {type(model).__name__} has no noise schedule; pass the pipeline that it belongs to")
    return scheduler


def has_weights(denoiser: ModelMixin) -> bool:
    """Return whether a denoiser has weights: its parameters are not on the meta device."""
    return all(p.device.type != "meta" for p in denoiser.parameters())
