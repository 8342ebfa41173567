"""The dtype that a folder is stored in, and back into it: stages compute in float32 and leave what they were given."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import safe_open
from torch import nn

from diffprune.models.builtin import PIPELINES
from diffprune.models.loading import is_hub_id

_FLOATING = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


def in_stored_dtype(model: Any, source: str) -> Any:
    """A pipeline or bare denoiser, its components cast in place to the dtypes that they are stored in at MODEL.

    A component that is stored in one dtype is cast whole, one of mixed dtypes tensor by tensor, by name.
    """
    folder = _folder(source)
    components: Mapping[str, Any] = {"": model} if isinstance(model, nn.Module) else model.components
    for name, component in components.items():
        if isinstance(component, nn.Module):
            _cast(component, stored_dtypes(folder / name))
    return model


def stored_dtypes(folder: Path) -> dict[str, torch.dtype]:
    """Name -> dtype of every floating tensor in a folder's safetensors, from their headers alone.

    Of a folder that holds variants (`model.fp16.safetensors`), the files without one count, as they are what is loaded.
    """
    found: dict[str, torch.dtype] = {}
    for path in folder.glob("*.safetensors"):
        if "." not in path.stem:
            with safe_open(path, framework="pt") as file:
                names = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
            found |= {name: _FLOATING[kind] for name, kind in names.items() if kind in _FLOATING}
    return found


def _cast(component: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
    if len(kinds := set(dtypes.values())) == 1:
        nn.Module.to(component, kinds.pop())  # diffusers' own `to` warns, even where it has nothing to warn of
        return
    for name, value in (*component.named_parameters(), *component.named_buffers()):
        value.data = value.data.to(dtypes.get(name, value.dtype))


def _folder(source: str) -> Path:
    """Where MODEL, which was loaded before, lies on this machine."""
    if is_hub_id(source):
        try:
            return Path(snapshot_download(source, local_files_only=True))
        except LocalEntryNotFoundError:
            return Path(source)
    return PIPELINES.get(source, Path(source))
