"""Read and write the safetensors of a folder with one tensor in memory at a time.

Format: https://github.com/huggingface/safetensors, whose own writer needs all tensors of a file at once. Shard sizes,
shard names and the index are those of `save_pretrained`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from torch import Tensor

from diffprune.runs.atomic_files import atomic_write

NAME = "diffusion_pytorch_model"
MAX_SHARD_SIZE = "10GB"
"""The default of `save_pretrained`."""

FLOATING = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
_CODES = {dtype: code for code, dtype in FLOATING.items()}


@dataclass(frozen=True)
class StoredTensor:
    """Location of a tensor in a safetensors file. dtype: the code of safetensors, such as "BF16"."""

    path: Path
    dtype: str
    shape: tuple[int, ...]


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return name -> stored tensor of a folder's safetensors; reads their headers only.

    Ignores files of variants (`model.fp16.safetensors`), which diffusers does not load by default.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        if "." not in path.stem:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    part = file.get_slice(name)
                    tensors[name] = StoredTensor(path, part.get_dtype(), tuple(part.get_shape()))
    return tensors


def read_tensor(name: str, stored: StoredTensor) -> Tensor:
    """Return one tensor as a view of the memory-mapped file: only accessed pages are read from disk."""
    with safe_open(stored.path, framework="pt") as file:
        return cast(Tensor, file.get_tensor(name))


def write_shards(folder: Path, tensors: Mapping[str, Tensor], value: Callable[[str], Tensor]) -> None:
    """Write the files of `save_pretrained` with one tensor in memory at a time.

    tensors: name -> tensor on the meta device, with shape and floating-point dtype. value: name -> tensor with values.
    """
    split = split_torch_state_dict_into_shards(
        dict(tensors), filename_pattern=f"{NAME}{{suffix}}.safetensors", max_shard_size=MAX_SHARD_SIZE
    )
    for filename, names in split.filename_to_tensors.items():
        _write_file(folder / filename, {name: tensors[name] for name in names}, value)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        atomic_write(folder / f"{NAME}.safetensors.index.json", json.dumps(index, indent=2, sort_keys=True) + "\n")


def _write_file(path: Path, tensors: Mapping[str, Tensor], value: Callable[[str], Tensor]) -> None:
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))  # keeps every tensor aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        start, end = end, end + tensors[name].numel() * tensors[name].dtype.itemsize
        shape, code = list(tensors[name].shape), _CODES[tensors[name].dtype]
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            tensor = value(name)
            assert (tensor.shape, tensor.dtype) == (tensors[name].shape, tensors[name].dtype), name
            file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
