"""Solved layers on disk, so that an interrupted compensation does not solve them again."""

from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from diffprune.pruning.compensation.layer_fit import Fit
from diffprune.runs.tensor_cache import read_cache, write_cache


class SolvedLayers:
    """A folder with one file per solved layer: its weight and bias as corrected, and how it was fitted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, fit: Fit, layer: nn.Module) -> None:
        """Keep a layer that has been fitted."""
        write_cache(self._file(fit.path), (dict(layer.named_parameters(recurse=False)), asdict(fit)), {})

    def load(self, path: str, layer: nn.Module) -> Fit | None:
        """Give a layer the weights that were kept; None where there are none, or damaged ones."""
        found = read_cache(self._file(path), {})
        if found is None:
            return None
        tensors, fit = found
        with torch.no_grad():
            for name, parameter in layer.named_parameters(recurse=False):
                parameter.copy_(tensors[name])
        return Fit(fit["path"], tuple(fit["fitted"]), tuple(fit["held_out"]), fit["changed"])

    def _file(self, path: str) -> Path:
        return self.folder / f"{path}.safetensors"
