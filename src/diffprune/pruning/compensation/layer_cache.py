"""Cache of solved layers on disk, so that an interrupted compensation resumes."""

from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from diffprune.pruning.compensation.layer_fit import Fit
from diffprune.runs.tensor_cache import read_cache, write_cache


class SolvedLayers:
    """A folder with one file per solved layer: its weight, its bias and its fit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, fit: Fit, layer: nn.Module) -> None:
        """Write the parameters of a fitted layer and its fit."""
        write_cache(self._file(fit.path), (dict(layer.named_parameters(recurse=False)), asdict(fit)), {})

    def load(self, path: str, layer: nn.Module) -> Fit | None:
        """Copy the cached parameters into `layer` and return its fit; None if the file is missing or damaged."""
        cached = read_cache(self._file(path), {})
        if cached is None:
            return None
        tensors, fit = cached
        with torch.no_grad():
            for name, parameter in layer.named_parameters(recurse=False):
                parameter.copy_(tensors[name])
        return Fit(fit["path"], tuple(fit["fitted"]), tuple(fit["held_out"]), fit["changed"])

    def _file(self, path: str) -> Path:
        return self.folder / f"{path}.safetensors"
