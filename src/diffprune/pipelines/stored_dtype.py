"""Load a model in the dtype that it is stored in, and cast a float32 result back to that dtype."""

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
from diffprune.pipelines.loading import Model, load_model
from diffprune.pipelines.model_source import is_hub_id

AUTOENCODERS = ("vae", "vqvae")
"""Components that the scores do not use."""


def load_as_stored(source: str) -> Model:
    """Load MODEL for a stage that does not train it: in bfloat16 if it is stored in bfloat16, else in float32.

    All networks of a pipeline except the autoencoder must be stored in bfloat16.
    """
    if isinstance(source, InMemory):
        return load_model(source)
    folder = _download(source)
    if not (folder / "model_index.json").is_file():
        dtypes = set(stored_dtypes(folder).values()) if (folder / "config.json").is_file() else set()
        return load_model(source, **({"dtype": torch.bfloat16} if dtypes == {torch.bfloat16} else {}))
    components = {path.name: set(stored_dtypes(path).values()) for path in folder.iterdir() if path.is_dir()}
    networks = {name: dtypes for name, dtypes in components.items() if dtypes}
    if all(dtypes == {torch.bfloat16} for name, dtypes in networks.items() if name not in AUTOENCODERS) and networks:
        stored = {name: next(iter(dtypes)) for name, dtypes in networks.items() if len(dtypes) == 1}
        return load_model(source, dtype={**stored, "default": torch.float32})
    return load_model(source)


def in_stored_dtype(model: Any, source: str) -> Any:
    """Cast the components of a pipeline, or a bare denoiser, in place to their stored dtypes in MODEL; return it.

    A component stored in one dtype is cast as a whole, one of mixed dtypes tensor by tensor, by name.
    """
    if isinstance(source, InMemory):
        return model
    folder = _local_folder(source)
    components: Mapping[str, Any] = {"": model} if isinstance(model, nn.Module) else model.components
    for name, component in components.items():
        if isinstance(component, nn.Module):
            _cast(component, stored_dtypes(folder / name))
    return model


def stored_dtypes(folder: Path) -> dict[str, torch.dtype]:
    """Return name -> dtype of every floating-point tensor in a folder's safetensors."""
    return {name: FLOATING[t.dtype] for name, t in stored_tensors(folder).items() if t.dtype in FLOATING}


def _cast(component: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
    if len(kinds := set(dtypes.values())) == 1:
        nn.Module.to(component, kinds.pop())  # the `to` of diffusers warns without reason
        return
    for name, value in (*component.named_parameters(), *component.named_buffers()):
        value.data = value.data.to(dtypes.get(name, value.dtype))


def _download(source: str) -> Path:
    """Return the local folder of MODEL, downloaded if necessary; `load_model` reports a missing one."""
    if is_hub_id(source):
        register_with_diffusers()
        try:
            return Path(cast(Any, DiffusionPipeline).download(source, use_safetensors=True))
        except (OSError, ValueError):
            return Path(source)
    return PIPELINES.get(source, Path(source))


def _local_folder(source: str) -> Path:
    """Return the local folder of MODEL, which was loaded before."""
    if is_hub_id(source):
        try:
            return Path(snapshot_download(source, local_files_only=True))
        except LocalEntryNotFoundError:
            return Path(source)
    return PIPELINES.get(source, Path(source))
