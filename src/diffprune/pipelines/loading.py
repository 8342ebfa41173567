"""Load MODEL: a folder, a hub id, a `config.json` or a built-in name."""

import importlib
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors import SafetensorError
from torch import nn

from diffprune.artifact.pruned_classes import class_by_name
from diffprune.artifact.registration import register_with_diffusers
from diffprune.compute.torch_context import default_torch_context
from diffprune.errors import DiffpruneError, ModelError
from diffprune.options.in_memory import InMemory
from diffprune.pipelines.architecture_configs import architecture, denoiser_class, read_config
from diffprune.pipelines.builtin import ARCHITECTURES, PIPELINES
from diffprune.pipelines.denoiser_access import denoiser_of, has_weights
from diffprune.pipelines.model_source import check_model_exists, is_hub_id, sought_on_hub

_FETCH_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")
_log = logging.getLogger(__name__)

_OWN_PIPELINES = {"ClassConditionalLDMPipeline": "diffprune.pipelines.class_conditional"}
"""Pipeline class that diffusers does not have -> its module."""

PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")
"""Suffixes of pickle files, which are not opened: they can run code."""


@dataclass(frozen=True)
class Model:
    """A loaded MODEL.

    pipeline: the pipeline of the denoiser; None for a bare denoiser or an architecture.
    has_weights: False for an architecture, whose parameters are on the meta device.
    source: the MODEL that was loaded.
    """

    denoiser: ModelMixin
    pipeline: DiffusionPipeline | None
    has_weights: bool
    source: str

    @property
    def whole(self) -> DiffusionPipeline | ModelMixin:
        """The pipeline, or the bare denoiser if there is none."""
        return self.pipeline or self.denoiser


def load_model(source: str | os.PathLike[str], **options: Any) -> Model:
    """Load MODEL: a pipeline or denoiser folder, a hub id, a `config.json`, or a built-in name.

    options: of `from_pretrained`, such as dtype (default: float32). Reads weights from safetensors only.
    Raises ModelError if there is no such model, or if it cannot be loaded.
    """
    if isinstance(source, InMemory):
        return _in_memory(source)
    name = str(source)
    path = Path(name)
    if name in (*ARCHITECTURES, *PIPELINES) and path.exists():
        raise ModelError(f"{name} is both a built-in model and a local path; write ./{name} for the path, or rename it")
    if name in ARCHITECTURES:
        return Model(architecture(name), None, False, name)
    if name in PIPELINES or (path / "model_index.json").is_file():
        pipeline = load_pipeline(name, **options)
        return Model(denoiser_of(pipeline), pipeline, True, name)
    if path.suffix.lower() in PICKLES:
        raise ModelError(
            f"{name} is a pickle file, which can run code when it is read; it was not opened. If you trust it, load "
            "it, save it with `save_pretrained` as safetensors, and pass that folder"
        )
    if path.is_file() and path.suffix == ".json":
        return Model(architecture(name), None, False, name)
    if (path / "config.json").is_file():
        return Model(_load_denoiser(path, options), None, True, name)
    if path.exists():
        raise ModelError(
            f"{name} is neither a pipeline folder (no model_index.json) nor a denoiser folder (no config.json)"
        )
    check_model_exists(name)
    pipeline = load_pipeline(name, **options)
    return Model(denoiser_of(pipeline), pipeline, True, name)


def _in_memory(source: InMemory) -> Model:
    denoiser = denoiser_of(source.value)
    pipeline = None if isinstance(source.value, nn.Module) else source.value
    return Model(denoiser, pipeline, has_weights(denoiser), source)


@default_torch_context()
def load_pipeline(source: str | os.PathLike[str], **options: Any) -> DiffusionPipeline:
    """Load a pipeline, pruned or not, from a folder, a hub id or a built-in name such as `digits`.

    options: of `DiffusionPipeline.from_pretrained`. Reads weights from safetensors only, by default as float32.
    Raises ModelError if the pipeline cannot be loaded.
    """
    register_with_diffusers()
    if is_hub_id(str(source)) and Path(source).parent.is_dir():
        _log.warning("there is no %s in the folder %s; looking it up on the hub", source, Path(source).parent)
    location = PIPELINES.get(str(source), Path(source) if Path(source).exists() else source)
    try:
        kind = _pipeline_class(location, options)
        with torch.random.fork_rng(devices=[]):  # text encoders initialize weights before they load theirs
            pipeline = kind.from_pretrained(location, **{"use_safetensors": True, **options})
        if not {"dtype", "torch_dtype"} & options.keys():
            _cast_to_float32(pipeline)
        return cast(DiffusionPipeline, pipeline)
    except DiffpruneError:
        raise
    except Exception as error:  # diffusers raises many classes of errors for damaged folders
        raise _loading_error(source, error) from error


def _cast_to_float32(pipeline: Any) -> None:
    """Cast all components to one dtype: transformers loads in the stored dtype, diffusers in float32."""
    for component in pipeline.components.values():
        if isinstance(component, nn.Module) and not getattr(component, "is_quantized", False):
            nn.Module.float(component)


def _pipeline_class(location: str | os.PathLike[str], options: dict[str, Any]) -> Any:
    """Return the class in `model_index.json` if diffprune defines it; else DiffusionPipeline, which finds its own."""
    fetch = {k: options[k] for k in _FETCH_OPTIONS if options.get(k) is not None}
    index: Any = DiffusionPipeline.load_config(location, **fetch)
    name = index.get("_class_name")
    if name not in _OWN_PIPELINES:
        return DiffusionPipeline
    return getattr(importlib.import_module(_OWN_PIPELINES[name]), name)


def _load_denoiser(folder: Path, options: Mapping[str, Any]) -> ModelMixin:
    kind = class_by_name(denoiser_class(read_config(folder / "config.json"), str(folder)).__name__)
    try:
        return cast(ModelMixin, cast(Any, kind).from_pretrained(folder, use_safetensors=True, **options))
    except DiffpruneError:
        raise
    except Exception as error:  # as in `load_pipeline`
        raise _loading_error(folder, error) from error


def _loading_error(source: object, error: Exception) -> ModelError:
    """Translate an error of diffusers into its reason and, where there is one, its remedy."""
    reason = str(error).partition(" If you want to instead")[0].strip()
    if isinstance(error, KeyError | TypeError | AttributeError):
        reason = f"a value in its JSON files is missing or not valid ({type(error).__name__}: {reason})"
    elif isinstance(error, ImportError) or " requires " in reason:
        reason += ". Install the missing package. Quantized models cannot be pruned: pass the model before quantization"
    elif any(isinstance(e, SafetensorError) for e in _causes(error)):
        reason += " The file is damaged or truncated: copy or download it again"
    elif "no file named" in reason and "safetensors" in reason:
        reason += (
            " Pickled weights (.bin) are not opened: if you trust them, load them and save them as safetensors."
            " A folder saved with a variant can be loaded in Python, with variant=NAME"
        )
    return ModelError(f"cannot load {source}: {sought_on_hub(str(source))}{reason}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its chain of causes."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
