"""Pruning a folder by a plan without loading a model: the denoiser tensor by tensor, all else as files."""

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
from diffprune.planning import Plan
from diffprune.pruning.surgery import prune_stored
from diffprune.runs.atomic_files import atomic_write, read_json

INDEX = "model_index.json"
_LEFT_OUT = (*(f"*{ending}" for ending in PICKLES), "*.*.safetensors", ".*")
"""What is not copied: pickles, variants of weights, hidden files."""


@dataclass(frozen=True)
class StoredModel:
    """A pipeline or denoiser on disk.

    others: the pipeline's other components, by folder. component: the name of its denoiser; None for a bare one.
    denoiser: its architecture, on the meta device. weights: its tensors by name.
    """

    folder: Path
    component: str | None
    others: tuple[str, ...]
    denoiser: ModelMixin
    weights: Mapping[str, StoredTensor]


def stored_model(source: str) -> StoredModel | None:
    """MODEL on disk; None for one that has to be loaded to be understood, or to be refused.

    That is a hub id, a folder that is not whole, and weights that are not just the tensors that the config asks for
    (old names, other dtypes): diffusers' loader knows about those.
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
            if component is None or not all(_is_whole(folder / name) for name in others):
                return None
        place = folder / (component or "")
        if not (place / "config.json").is_file():
            return None
        denoiser, weights = stored_architecture(place), stored_tensors(place)
    except (DiffpruneError, OSError, ValueError, SafetensorError):
        return None
    expected = {name: tuple(value.shape) for name, value in nn.Module.state_dict(denoiser).items()}
    if expected != {name: stored.shape for name, stored in weights.items()}:
        return None
    if not all(stored.dtype in FLOATING for stored in weights.values()):
        return None
    return StoredModel(folder, component, others, denoiser, weights)


def prune_folder(model: StoredModel, plan: Plan, out: Path) -> None:
    """Write the pruned pipeline or denoiser into `out`.

    Raises PlanError when the plan is for another model.
    """
    small = prune_stored(model.denoiser, model.weights, plan, out / (model.component or ""))
    if model.component is None:
        return
    for name in model.others:
        shutil.copytree(model.folder / name, out / name, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*_LEFT_OUT))
    index = read_json(model.folder / INDEX)
    index[model.component] = [type(small).__module__.partition(".")[0], type(small).__name__]
    atomic_write(out / INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")


def _is_whole(component: Path) -> bool:
    """Whether a component's folder is there, and its weights, if it has any, are not pickles alone."""
    names = [path.name for path in component.glob("*")]
    return bool(names) and (
        any(name.endswith(".safetensors") for name in names) or not any(name.endswith(PICKLES) for name in names)
    )
