"""Finding a model by folder, hub id, config file or built-in name."""

import copy
import importlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors import SafetensorError
from torch import nn

from diffprune.artifact.manifest import MANIFEST_NAME, read_manifest
from diffprune.artifact.preconditions import check_unwrapped
from diffprune.artifact.pruned_classes import class_by_name, empty_model
from diffprune.artifact.registration import register_with_diffusers
from diffprune.errors import DiffpruneError, ModelError
from diffprune.options.in_memory import InMemory
from diffprune.pipelines.builtin import ARCHITECTURES, PIPELINES

DENOISER_COMPONENTS = ("unet", "transformer")
_FETCH_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")
_log = logging.getLogger(__name__)

_OWN_PIPELINES = {"ClassConditionalLDMPipeline": "diffprune.pipelines.class_conditional"}
"""Pipeline classes that diffusers does not have, with the module of each."""

PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")
"""Endings of files that are not opened."""


@dataclass(frozen=True)
class Model:
    """A denoiser and what came with it.

    pipeline: the pipeline it belongs to, None for a bare denoiser or architecture.
    has_weights: False for an architecture; its parameters are on the meta device then.
    source: the MODEL it was loaded from, as given.
    """

    denoiser: ModelMixin
    pipeline: DiffusionPipeline | None
    has_weights: bool
    source: str

    @property
    def whole(self) -> DiffusionPipeline | ModelMixin:
        """The pipeline, or the bare denoiser where there is none."""
        return self.pipeline or self.denoiser


def load_model(source: str | os.PathLike[str], **options: Any) -> Model:
    """Load MODEL: a pipeline or denoiser folder, a hub id, a `config.json`, or a built-in name.

    options: of `from_pretrained`, such as dtype (default: float32).
    Raises ModelError with what was found and what would do. Weights are read from safetensors only.
    """
    if isinstance(source, InMemory):
        return _in_memory(source)
    name = str(source)
    path = Path(name)
    if name in (*ARCHITECTURES, *PIPELINES) and path.exists():
        raise ModelError(f"{name} is both a built-in model and a path here; write ./{name} for the path, or rename it")
    if name in ARCHITECTURES:
        return Model(_architecture(ARCHITECTURES[name], name), None, False, name)
    if name in PIPELINES or (path / "model_index.json").is_file():
        pipeline = load_pipeline(name, **options)
        return Model(denoiser_of(pipeline), pipeline, True, name)
    if path.suffix.lower() in PICKLES:
        raise ModelError(
            f"{name} is a pickle file, which can run code when it is read; it was not opened. "
            "Load it where you trust it, save it with `save_pretrained` as safetensors, and give that folder"
        )
    if path.is_file() and path.suffix == ".json":
        return Model(_architecture(_read_config(path), name), None, False, name)
    if (path / "config.json").is_file():
        return Model(_load_denoiser(path, options), None, True, name)
    if path.exists():
        raise ModelError(
            f"{name} is neither a pipeline folder (no model_index.json) nor a denoiser folder (no config.json)"
        )
    if not is_hub_id(name):
        known = ", ".join([*PIPELINES, *ARCHITECTURES])
        raise ModelError(f"no folder or file {name}; built-in names: {known}; hub ids look like owner/name")
    pipeline = load_pipeline(name, **options)
    return Model(denoiser_of(pipeline), pipeline, True, name)


def _in_memory(source: InMemory) -> Model:
    denoiser = denoiser_of(source.value)
    pipeline = None if isinstance(source.value, nn.Module) else source.value
    return Model(denoiser, pipeline, has_weights(denoiser), source)


def is_hub_id(source: str) -> bool:
    """Whether a MODEL or DATA can only be a hub id: nothing is there, and it looks like owner/name."""
    return not Path(source).exists() and source.count("/") == 1 and not source.startswith((".", "/", "~"))


def sought_on_hub(source: str) -> str:
    """What an error about a MODEL or DATA starts its reason with: a path that is not here was taken for a hub id."""
    return f"there is no folder {source} here, so it was looked for on the hub: " if is_hub_id(source) else ""


def load_pipeline(source: str | os.PathLike[str], **options: Any) -> DiffusionPipeline:
    """Load a pipeline, pruned or not, from a folder, a hub id or a built-in name such as `digits`.

    Takes the options of `DiffusionPipeline.from_pretrained`; weights are read from safetensors only.
    Raises ModelError when it cannot be loaded.
    """
    register_with_diffusers()
    if is_hub_id(str(source)) and Path(source).parent.is_dir():
        _log.warning("there is no %s in the folder %s; looking for it on the hub", source, Path(source).parent)
    place = PIPELINES.get(str(source), Path(source) if Path(source).exists() else source)
    try:
        kind = _pipeline_class(place, options)
        with torch.random.fork_rng(devices=[]):  # text encoders draw weights before they read theirs
            pipeline = kind.from_pretrained(place, **{"use_safetensors": True, **options})
        if not {"dtype", "torch_dtype"} & options.keys():
            _in_float32(pipeline)
        return cast(DiffusionPipeline, pipeline)
    except DiffpruneError:
        raise
    except Exception as error:  # diffusers raises a different class for each way a folder can be broken
        raise _unreadable(source, error) from error


def _in_float32(pipeline: Any) -> None:
    """Bring all components to one dtype: transformers loads in the stored one, diffusers in float32."""
    for component in pipeline.components.values():
        if isinstance(component, nn.Module) and not getattr(component, "is_quantized", False):
            nn.Module.float(component)


def _pipeline_class(place: str | os.PathLike[str], options: dict[str, Any]) -> Any:
    """The class named in `model_index.json` where it is ours; diffusers looks its own up by itself."""
    fetch = {k: options[k] for k in _FETCH_OPTIONS if options.get(k) is not None}
    index: Any = DiffusionPipeline.load_config(place, **fetch)
    name = index.get("_class_name")
    if name not in _OWN_PIPELINES:
        return DiffusionPipeline
    return getattr(importlib.import_module(_OWN_PIPELINES[name]), name)


def denoiser_of(model: DiffusionPipeline | ModelMixin) -> ModelMixin:
    """The denoiser of a pipeline, or the denoiser itself; raises ModelError for one inside a wrapper."""
    given: Any = model
    check_unwrapped(given)
    if isinstance(given, nn.Module):
        return cast(ModelMixin, given)
    return cast(ModelMixin, getattr(given, denoiser_component(given)))


def denoiser_component(pipeline: DiffusionPipeline) -> str:
    """The name under which a pipeline holds its denoiser; raises ModelError when there is none."""
    for name in DENOISER_COMPONENTS:
        check_unwrapped(getattr(pipeline, name, None))
        if isinstance(getattr(pipeline, name, None), ModelMixin):
            return name
    raise ModelError(f"{type(pipeline).__name__} has no denoiser: none of {', '.join(DENOISER_COMPONENTS)}")


def with_denoiser(pipeline: Any, denoiser: ModelMixin) -> Any:
    """A copy of a pipeline that holds another denoiser and shares all other components."""
    changed = copy.copy(pipeline)
    changed.register_modules(**{denoiser_component(changed): denoiser})
    return changed


def scheduler_of(model: DiffusionPipeline | ModelMixin) -> Any:
    """The noise schedule of a pipeline; raises ModelError for a bare denoiser."""
    scheduler = getattr(model, "scheduler", None)
    if scheduler is None:
        raise ModelError(f"a bare {type(model).__name__} has no noise schedule; give the pipeline it belongs to")
    return scheduler


def has_weights(denoiser: ModelMixin) -> bool:
    """False when the parameters are on the meta device."""
    return all(p.device.type != "meta" for p in denoiser.parameters())


def architecture(name: str) -> ModelMixin:
    """A built-in architecture, or that of a config.json, with its parameters on the meta device."""
    if name in ARCHITECTURES:
        return _architecture(ARCHITECTURES[name], name)
    if not Path(name).is_file():
        raise ModelError(
            f"no architecture {name!r}; built in: {', '.join(ARCHITECTURES)}; or the path of a config.json"
        )
    return _architecture(_read_config(Path(name)), name)


def stored_architecture(folder: Path) -> ModelMixin:
    """The denoiser of a folder, pruned or not, with its parameters on the meta device."""
    config = _read_config(folder / "config.json")
    manifest = folder / MANIFEST_NAME
    if not manifest.is_file():
        return _architecture(config, str(folder))
    kind = class_by_name(_denoiser_class(config, str(folder)).__name__)
    return empty_model(kind, config, pruning_manifest=read_manifest(manifest))


def _architecture(config: dict[str, Any], name: str) -> ModelMixin:
    kind = _denoiser_class(config, name)
    try:
        return empty_model(kind, config)
    except Exception as error:  # each diffusers class checks its config in its own way, or not at all
        raise ModelError(f"{name} is not a config of {kind.__name__}: {error}") from error


def _denoiser_class(config: dict[str, Any], name: str) -> type[ModelMixin]:
    kind = getattr(diffusers, str(config.get("_class_name")), None)
    if not (isinstance(kind, type) and issubclass(kind, ModelMixin)):
        raise ModelError(f"{name}: _class_name is {config.get('_class_name')!r}, expected a diffusers model class")
    return kind


def _load_denoiser(folder: Path, options: Mapping[str, Any]) -> ModelMixin:
    kind = class_by_name(_denoiser_class(_read_config(folder / "config.json"), str(folder)).__name__)
    try:
        return cast(ModelMixin, cast(Any, kind).from_pretrained(folder, use_safetensors=True, **options))
    except DiffpruneError:
        raise
    except Exception as error:  # as above
        raise _unreadable(folder, error) from error


def _unreadable(source: object, error: Exception) -> ModelError:
    """What went wrong while loading, with what to do about it where that can be told."""
    reason = str(error).partition(" If you want to instead")[0].strip()
    if isinstance(error, KeyError | TypeError | AttributeError):
        reason = f"a value in its JSON files is missing or not valid ({type(error).__name__}: {reason})"
    elif isinstance(error, ImportError) or " requires " in reason:
        reason += (
            ". Install what is missing; where it is for quantised weights, give the model as it was before that: "
            "quantised models cannot be pruned"
        )
    elif any(isinstance(e, SafetensorError) for e in _chain(error)):
        reason += " The file is damaged or truncated: copy or download it again"
    elif "no file named" in reason and "safetensors" in reason:
        reason += (
            " Pickled weights (.bin) are not opened: load them where you trust them and save as safetensors."
            " A folder that was saved with a variant loads in Python, with variant=NAME"
        )
    return ModelError(f"cannot load {source}: {sought_on_hub(str(source))}{reason}")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _read_config(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a {type(value).__name__}, expected a diffusers config object")
    return value
