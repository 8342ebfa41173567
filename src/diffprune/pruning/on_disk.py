"""Prune a folder without loading its model: the denoiser tensor by tensor, other components as files."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError
from torch import nn

from diffprune.artifact.safetensors_io import FLOATING, StoredTensor, stored_tensors
from diffprune.errors import DiffpruneError
from diffprune.pipelines.architecture_configs import stored_architecture
from diffprune.pipelines.builtin import PIPELINES
from diffprune.pipelines.denoiser_access import DENOISER_COMPONENTS
from diffprune.pipelines.loading import PICKLES
from diffprune.planning import Plan, prepare
from diffprune.pruning.surgery import prune_stored
from diffprune.runs.atomic_files import atomic_write, read_json

INDEX = "model_index.json"
_NOT_COPIED = (*(f"*{ending}" for ending in PICKLES), "*.*.safetensors", ".*")
"""Files that are not copied: pickles, variants of weights, hidden files."""


@dataclass(frozen=True)
class StoredModel:
    """A pipeline or denoiser on disk.

    Attributes:
        folder: the folder of the pipeline or denoiser.
        component: name of the denoiser in the pipeline; None for a bare denoiser.
        others: folders of the other components.
        denoiser: its architecture, on the meta device.
        weights: its stored tensors by name.
    """

    folder: Path
    component: str | None
    others: tuple[str, ...]
    denoiser: ModelMixin
    weights: Mapping[str, StoredTensor]


def stored_model(source: str) -> StoredModel | None:
    """Return MODEL on disk; None if it must be loaded with diffusers, which converts it or reports an error.

    None is returned for a hub id, an incomplete folder, and weights whose names or shapes differ from the config or
    whose dtype is not supported.
    """
    folder = PIPELINES.get(source, Path(source))
    if source in PIPELINES and Path(source).exists():
        return None
    component, others = None, tuple[str, ...]()
    try:
        if (folder / INDEX).is_file():
            index = read_json(folder / INDEX)
            named = [name for name, value in index.items() if isinstance(value, list) and value[0] is not None]
            component = next((name for name in DENOISER_COMPONENTS if name in named), None)
            others = tuple(name for name in named if name != component)
            if component is None or not all(_is_complete(folder / name) for name in others):
                return None
        denoiser_folder = folder / (component or "")
        if not (denoiser_folder / "config.json").is_file():
            return None
        denoiser, weights = stored_architecture(denoiser_folder), stored_tensors(denoiser_folder)
    except (DiffpruneError, OSError, ValueError, SafetensorError):
        return None
    expected = {name: tuple(value.shape) for name, value in nn.Module.state_dict(denoiser).items()}
    if expected != {name: stored.shape for name, stored in weights.items()}:
        return None
    if not all(stored.dtype in FLOATING for stored in weights.values()):
        return None
    return StoredModel(folder, component, others, denoiser, weights)


def prune_folder(model: StoredModel, plan: Plan, out: Path) -> None:
    """Write the pruned pipeline or denoiser into `out`; raise PlanError if the plan is for another model."""
    small = prune_stored(prepare(model.denoiser, plan.kinds), model.weights, plan, out / (model.component or ""))
    if model.component is None:
        return
    for name in model.others:
        shutil.copytree(
            model.folder / name, out / name, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*_NOT_COPIED)
        )
    index = read_json(model.folder / INDEX)
    index[model.component] = [type(small).__module__.partition(".")[0], type(small).__name__]
    atomic_write(out / INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")


def _is_complete(component: Path) -> bool:
    """Return whether the folder of a component has files, and its weights are not only pickles."""
    names = [path.name for path in component.glob("*")]
    return bool(names) and (
        any(name.endswith(".safetensors") for name in names) or not any(name.endswith(PICKLES) for name in names)
    )
