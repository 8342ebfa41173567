"""Build a denoiser without weights from a built-in name, a `config.json`, or a denoiser folder."""

import json
from pathlib import Path
from typing import Any

import diffusers
from diffusers.models.modeling_utils import ModelMixin

from diffprune.artifact.manifest import MANIFEST_NAME, read_manifest
from diffprune.artifact.pruned_classes import class_by_name, empty_model
from diffprune.errors import ModelError
from diffprune.pipelines.builtin import ARCHITECTURES


def architecture(name: str) -> ModelMixin:
    """Build a built-in architecture, or that of a `config.json`, with its parameters on the meta device.

    Raises ModelError if there is neither, or if the config is not valid.
    """
    if name in ARCHITECTURES:
        return _from_config(ARCHITECTURES[name], name)
    if not Path(name).is_file():
        raise ModelError(
            f"no architecture {name!r}; expected one of {', '.join(ARCHITECTURES)}, or the path of a config.json"
        )
    return _from_config(read_config(Path(name)), name)


def stored_architecture(folder: Path) -> ModelMixin:
    """Build the denoiser of a folder, pruned or not, with its parameters on the meta device."""
    config = read_config(folder / "config.json")
    manifest = folder / MANIFEST_NAME
    if not manifest.is_file():
        return _from_config(config, str(folder))
    kind = class_by_name(denoiser_class(config, str(folder)).__name__)
    return empty_model(kind, config, pruning_manifest=read_manifest(manifest))


def denoiser_class(config: dict[str, Any], name: str) -> type[ModelMixin]:
    """Return the diffusers class that a config names; raise ModelError, with `name`, if there is none."""
    kind = getattr(diffusers, str(config.get("_class_name")), None)
    if not (isinstance(kind, type) and issubclass(kind, ModelMixin)):
        raise ModelError(f"{name}: _class_name is {config.get('_class_name')!r}, expected a diffusers model class")
    return kind


def read_config(path: Path) -> dict[str, Any]:
    """Read a diffusers config; raise ModelError if it is not a JSON object."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a {type(value).__name__}, expected a diffusers config object")
    return value


def _from_config(config: dict[str, Any], name: str) -> ModelMixin:
    kind = denoiser_class(config, name)
    try:
        return empty_model(kind, config)
    except Exception as error:  # each diffusers class validates its config in its own way, or not at all
        raise ModelError(f"{name} is not a config of {kind.__name__}: {error}") from error
