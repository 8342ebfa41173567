"""Convert arguments of the public functions into values in memory, or into sources for the stages."""

import copy
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import nn

from diffprune.errors import ModelError, OptionError
from diffprune.options import TrainingOptions
from diffprune.options.in_memory import in_memory
from diffprune.pipelines.denoiser_access import denoiser_of, has_weights
from diffprune.pipelines.stored_dtype import load_as_stored
from diffprune.planning import Plan, read_plan
from diffprune.runs.run_record import Existing
from diffprune.runs.tensor_cache import tensors_digest


def model_value(model: Any) -> Any:
    """Return a pipeline or denoiser, loaded if `model` is a folder, hub id, config.json or built-in name.

    Weights that were made in inference mode cannot record gradients; they are copied. Raises ModelError for anything
    else.
    """
    if isinstance(model, str | os.PathLike):
        return load_as_stored(os.fspath(model)).whole
    if isinstance(model, nn.Module):
        return copy.deepcopy(model) if _has_inference_tensors(model) else model
    if isinstance(model, DiffusionPipeline):
        return _without_inference_tensors(model)
    raise ModelError(
        f"model: got {type(model).__name__}; expected a diffusers pipeline, a denoiser (nn.Module), or a folder, hub "
        "id, config.json or built-in name"
    )


def model_source(model: Any) -> str:
    """Return the folder, hub id or name of a model; for one in memory, a description with a hash of its content."""
    if isinstance(model, str | os.PathLike):
        return os.fspath(model)
    value = model_value(model)
    denoiser = denoiser_of(value)
    return in_memory(type(denoiser).__name__, type(value).__name__, _model_digest(value, denoiser), value)


def plan_value(plan: Any) -> Plan:
    """Return a plan, read if `plan` is the path of a plan.json or of its folder. Raises PlanError."""
    if isinstance(plan, Plan):
        return plan
    path = Path(plan)
    return read_plan(path / "plan.json" if path.is_dir() else path)


def plan_source(plan: Any) -> str:
    """Return the path of a plan.json as text; for a plan in memory, a description with a hash of its content."""
    if isinstance(plan, Plan):
        return in_memory("plan", plan.class_name, _hash(plan.model_dump_json()), plan)
    path = Path(plan)
    return str(path / "plan.json" if path.is_dir() else path)


def existing(overwrite: bool) -> Existing:
    """Return how a stage treats an existing result: `redo` replaces any result, `refuse` only keeps the same one."""
    return "redo" if overwrite else "refuse"


def check_no_folder_options(options: TrainingOptions) -> None:
    """Raise OptionError for options of checkpoints, previews and trackers, which need an output folder."""
    disabled = {"checkpoint_every": None, "keep_checkpoints": None, "preview_every": 0, "preview_steps": None,
               "tracker": "none"}  # fmt: skip
    chosen = [n for n, off in disabled.items() if n in options.model_fields_set and getattr(options, n) != off]
    if chosen:
        raise OptionError(f"{', '.join(chosen)}: needs an output folder; set `out`, or leave this out")


def _without_inference_tensors(pipeline: Any) -> Any:
    """Return the pipeline, or a copy with copied components where their weights were made in inference mode."""
    components = {name: value for name, value in vars(pipeline).items() if isinstance(value, nn.Module)}
    copied = {name: copy.deepcopy(value) for name, value in components.items() if _has_inference_tensors(value)}
    if not copied:
        return pipeline
    changed = copy.copy(pipeline)
    changed.register_modules(**copied)
    return changed


def _has_inference_tensors(module: nn.Module) -> bool:
    return any(tensor.is_inference() for tensor in (*module.parameters(), *module.buffers()))


def _model_digest(model: Any, denoiser: ModelMixin) -> str:
    """Return a hash of the classes, configs, modules and weights of a pipeline's components, or of a bare denoiser."""
    components = {"": denoiser} if isinstance(model, nn.Module) else model.components
    facts = []
    for name, component in sorted(components.items()):
        facts += [name, type(component).__name__, repr(getattr(component, "config", None))]
        if isinstance(component, nn.Module):
            facts.append(repr(component))
            if component is not denoiser or has_weights(denoiser):
                facts.append(tensors_digest(component.state_dict()))
    return _hash("\n".join(facts))


def _hash(text: str) -> str:
    return hashlib.sha256(json.dumps(text).encode()).hexdigest()
