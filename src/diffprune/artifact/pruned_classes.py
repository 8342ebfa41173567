"""Pruned denoiser classes: subclasses of diffusers classes, of the same name, that save and load a manifest."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
from accelerate import init_empty_weights
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from diffprune.artifact.manifest import MANIFEST_NAME, Manifest, apply_manifest, manifest_of, read_manifest
from diffprune.artifact.safetensors_io import MAX_SHARD_SIZE
from diffprune.errors import ManifestError, ModelError
from diffprune.runs.atomic_files import atomic_write

_FETCH_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
_SAME_SAVE = "config.json, pruning.json and the weights must come from the same save"


class PrunedMixin:
    """Methods that a pruned denoiser adds to its diffusers class; see `pruned_class`."""

    _stock_class: type[ModelMixin]
    pruning_provenance: list[dict[str, Any]]

    @property
    def pruning(self) -> Manifest:
        """The manifest of this model: its differences from the stock config."""
        model = cast(nn.Module, self)
        return manifest_of(model, stock_model(model), self.pruning_provenance)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Load a pruned denoiser from a folder or hub id, with the options of the diffusers class.

        Returns the stock diffusers model if there is no `pruning.json`. Reads safetensors only.
        Raises ManifestError if manifest, config and weights do not fit each other.
        """
        path = _fetch_manifest(pretrained_model_name_or_path, kwargs)
        if path is None:
            return cls._load_stock(pretrained_model_name_or_path, **kwargs)
        manifest = read_manifest(path)
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs |= {"use_safetensors": True, "output_loading_info": True}
        parent = cast(Any, super())
        try:
            model, info = parent.from_pretrained(pretrained_model_name_or_path, pruning_manifest=manifest, **kwargs)
        except ManifestError as error:
            raise ManifestError(f"{path}: {error}") from error
        except (ValueError, RuntimeError) as error:
            if not _is_shape_error(error):
                raise
            detail = str(error).partition(" If you want to instead")[0]
            raise ManifestError(f"weights do not fit {path}: {detail} {_SAME_SAVE}") from error
        wrong = [f"missing {k}" for k in info["missing_keys"]] + [f"unexpected {k}" for k in info["unexpected_keys"]]
        if wrong:
            raise ManifestError(f"weights do not fit {path}: {', '.join(wrong[:5])}; {_SAME_SAVE}")
        _align(model)
        return (model, info) if wants_info else model

    @classmethod
    def _load_stock(cls, source: str | os.PathLike[str], **kwargs: Any) -> Any:
        try:
            return cls._stock_class.from_pretrained(source, **kwargs)
        except (ValueError, RuntimeError) as error:
            if not _is_shape_error(error):
                raise
            detail = str(error).partition(" If you want to instead")[0]
            raise ManifestError(
                f"weights do not fit the config.json of {source}: {detail} There is no {MANIFEST_NAME}, which a pruned "
                "model needs: copy it from the folder where the model was saved"
            ) from error

    @classmethod
    def from_config(cls, config: Any, *, pruning_manifest: Manifest | None = None, **kwargs: Any) -> Any:
        """Build the model from its stock config; with a manifest, resize it and do not initialize resized weights."""
        with torch.random.fork_rng(devices=[]):  # some classes draw random tables in their constructor
            model = cast(Any, super()).from_config(config, **kwargs)
        bare = model[0] if isinstance(model, tuple) else model
        bare.pruning_provenance = []
        if pruning_manifest is not None:
            apply_manifest(pruning_manifest, bare)
            bare.pruning_provenance = list(pruning_manifest.provenance)
        return model

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        save_function: Any = None,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = MAX_SHARD_SIZE,
        **kwargs: Any,
    ) -> None:
        """Save like the diffusers class, plus `pruning.json`; safetensors only.

        Pipelines inspect the names of these arguments, so that they must be those of diffusers.
        """
        if not safe_serialization:
            raise ModelError("safe_serialization=False is not supported: pruned models are saved as safetensors")
        self.save_manifest(save_directory)
        cast(Any, super()).save_pretrained(
            save_directory, is_main_process, save_function, variant=variant, max_shard_size=max_shard_size, **kwargs
        )

    def save_manifest(self, save_directory: str | os.PathLike[str]) -> None:
        """Write `pruning.json` only."""
        atomic_write(Path(save_directory) / MANIFEST_NAME, self.pruning.to_json())


_CLASSES: dict[type, type[ModelMixin]] = {}


def pruned_class(stock: type[ModelMixin]) -> type[ModelMixin]:
    """Return the subclass of `stock` for pruned models: it has the same name and the module `diffprune`."""
    if issubclass(stock, PrunedMixin):
        return stock
    if getattr(diffusers, stock.__name__, None) is not stock:
        raise ModelError(
            f"{stock.__module__}.{stock.__name__} is not a class of diffusers; a pruned one could be saved but not "
            "loaded again. Pass an instance of a diffusers class"
        )
    if stock not in _CLASSES:
        body = {"__module__": "diffprune", "__doc__": f"A pruned diffusers.{stock.__name__}.", "_stock_class": stock}
        _CLASSES[stock] = type(stock.__name__, (PrunedMixin, stock), body)
    return _CLASSES[stock]


def class_by_name(name: str) -> type[ModelMixin]:
    """Return `diffprune.<name>`, the pruned class of a diffusers model class; raise AttributeError for other names."""
    stock = getattr(diffusers, name, None)
    if isinstance(stock, type) and issubclass(stock, ModelMixin):
        return pruned_class(stock)
    raise AttributeError(f"module 'diffprune' has no attribute {name!r}")


def stock_class(model: nn.Module) -> type[ModelMixin]:
    """Return the diffusers class of a denoiser, pruned or not."""
    return cast(type[ModelMixin], model._stock_class if isinstance(model, PrunedMixin) else type(model))


def stock_model(model: nn.Module) -> ModelMixin:
    """Build an unpruned model of the same config, with its parameters on the meta device."""
    return empty_model(stock_class(model), cast(Any, model).config)


def empty_model(kind: type[ModelMixin], config: Mapping[str, Any], **options: Any) -> ModelMixin:
    """Build a model with its parameters on the meta device and real buffers. options: those of from_config."""
    with torch.random.fork_rng(devices=[]), init_empty_weights(include_buffers=False):
        return cast(ModelMixin, cast(Any, kind).from_config(config, **options))


def _fetch_manifest(source: str | os.PathLike[str], options: Mapping[str, Any]) -> Path | None:
    """Return the `pruning.json` of a folder or hub id, downloaded if necessary; None if there is none."""
    if not Path(source).is_dir():
        fetch = {k: options[k] for k in _FETCH_OPTIONS if options.get(k) is not None}
        return _download(str(source), MANIFEST_NAME, fetch)
    folder = Path(source) / (options.get("subfolder") or "")
    if (folder / MANIFEST_NAME).is_file():
        return folder / MANIFEST_NAME
    return _fetch_into_snapshot(folder)


def _fetch_into_snapshot(folder: Path) -> Path | None:
    """Download `pruning.json` into a snapshot of the hub's cache.

    diffusers downloads only the files of a component whose names it knows; `pruning.json` is not among them.
    """
    parts = folder.absolute().parts
    snapshots = [i for i, part in enumerate(parts) if part == "snapshots" and parts[i - 1].startswith("models--")]
    if not snapshots or len(parts) < snapshots[-1] + 2:
        return None
    repository, commit = parts[snapshots[-1] - 1], parts[snapshots[-1] + 1]
    name = "/".join([*parts[snapshots[-1] + 2 :], MANIFEST_NAME])
    cache = Path(*parts[: snapshots[-1] - 1])
    return _download("/".join(repository.split("--")[1:]), name, {"revision": commit, "cache_dir": cache})


def _download(repository: str, name: str, options: Mapping[str, Any]) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(repository, name, **options))
    except EntryNotFoundError:  # also raised offline when the file is not in the cache
        return None


def _is_shape_error(error: Exception) -> bool:
    """Return whether diffusers refused the weights because of their shapes."""
    return "shape" in str(error) or "size" in str(error)


def _align(model: nn.Module) -> None:
    """Copy parameters that are unaligned in the file's memory map: kernels round differently on them."""
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and parameter.data_ptr() % 64:
            parameter.data = parameter.data.clone(memory_format=torch.preserve_format)
