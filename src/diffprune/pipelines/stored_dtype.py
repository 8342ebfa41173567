"""The dtype that a folder is stored in: what is loaded in it, and back into it for what was computed in float32."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import nn

from diffprune.artifact.registration import register_with_diffusers
from diffprune.artifact.safetensors_io import FLOATING, stored_tensors
from diffprune.options.in_memory import InMemory
from diffprune.pipelines.builtin import PIPELINES
from diffprune.pipelines.loading import Model, is_hub_id, load_model

AUTOENCODERS = ("vae", "vqvae")
"""Components that scores do not pass through."""


def load_as_stored(source: str) -> Model:
    """`load_model`, where a model that is stored in bfloat16 stays so, for stages that do not train it.

    That is a denoiser whose pipeline's other networks are in bfloat16 too (the autoencoder may be in another dtype);
    anything else comes in float32.
    """
    if isinstance(source, InMemory):
        return load_model(source)
    folder = _fetched(source)
    if not (folder / "model_index.json").is_file():
        dtypes = set(stored_dtypes(folder).values()) if (folder / "config.json").is_file() else set()
        return load_model(source, **({"dtype": torch.bfloat16} if dtypes == {torch.bfloat16} else {}))
    found = {place.name: set(stored_dtypes(place).values()) for place in folder.iterdir() if place.is_dir()}
    networks = {name: dtypes for name, dtypes in found.items() if dtypes}
    if all(dtypes == {torch.bfloat16} for name, dtypes in networks.items() if name not in AUTOENCODERS) and networks:
        stored = {name: next(iter(dtypes)) for name, dtypes in networks.items() if len(dtypes) == 1}
        return load_model(source, dtype={**stored, "default": torch.float32})
    return load_model(source)


def in_stored_dtype(model: Any, source: str) -> Any:
    """A pipeline or bare denoiser, its components cast in place to the dtypes that they are stored in at MODEL.

    A component that is stored in one dtype is cast whole, one of mixed dtypes tensor by tensor, by name.
    """
    if isinstance(source, InMemory):
        return model
    folder = _folder(source)
    components: Mapping[str, Any] = {"": model} if isinstance(model, nn.Module) else model.components
    for name, component in components.items():
        if isinstance(component, nn.Module):
            _cast(component, stored_dtypes(folder / name))
    return model


def stored_dtypes(folder: Path) -> dict[str, torch.dtype]:
    """Name -> dtype of every floating tensor in a folder's safetensors."""
    return {name: FLOATING[t.dtype] for name, t in stored_tensors(folder).items() if t.dtype in FLOATING}


def _cast(component: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
    if len(kinds := set(dtypes.values())) == 1:
        nn.Module.to(component, kinds.pop())  # diffusers' own `to` warns, even where it has nothing to warn of
        return
    for name, value in (*component.named_parameters(), *component.named_buffers()):
        value.data = value.data.to(dtypes.get(name, value.dtype))


def _fetched(source: str) -> Path:
    """Where MODEL lies, downloaded where need be; a place that is not there is for `load_model` to tell of."""
    if is_hub_id(source):
        register_with_diffusers()
        try:
            return Path(cast(Any, DiffusionPipeline).download(source, use_safetensors=True))
        except (OSError, ValueError):
            return Path(source)
    return PIPELINES.get(source, Path(source))


def _folder(source: str) -> Path:
    """Where MODEL, which was loaded before, lies on this machine."""
    if is_hub_id(source):
        try:
            return Path(snapshot_download(source, local_files_only=True))
        except LocalEntryNotFoundError:
            return Path(source)
    return PIPELINES.get(source, Path(source))
