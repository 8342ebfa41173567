"""Solved layers on disk, so that an interrupted compensation does not solve them again."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from diffprune.compensation.layers import Fit
from diffprune.records import write_whole


class SolvedLayers:
    """A folder with one file per solved layer: its weight and bias as corrected, and how it was fitted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, fit: Fit, layer: nn.Module) -> None:
        """Keep a layer that has been fitted."""
        tensors = {name: value.detach().contiguous() for name, value in layer.named_parameters(recurse=False)}
        write_whole(self._file(fit.path), save(tensors, {"fit": json.dumps(asdict(fit))}))

    def load(self, path: str, layer: nn.Module) -> Fit | None:
        """Give a layer the weights that were kept; None where there are none."""
        file = self._file(path)
        if not file.is_file():
            return None
        with safe_open(file, framework="pt") as tensors, torch.no_grad():
            for name, parameter in layer.named_parameters(recurse=False):
                parameter.copy_(tensors.get_tensor(name))
            fit = json.loads(tensors.metadata()["fit"])
        return Fit(fit["path"], tuple(fit["fitted"]), tuple(fit["held_out"]), fit["changed"])

    def _file(self, path: str) -> Path:
        return self.folder / f"{path}.safetensors"
