"""What MODEL and DATA name: a path, a hub id or a built-in name. Imports no torch."""

from pathlib import Path

from diffprune.errors import DataError, ModelError
from diffprune.pipelines.builtin import ARCHITECTURES, PIPELINES


def is_hub_id(source: str) -> bool:
    """Return whether a MODEL or DATA is a hub id: it looks like owner/name and is not a local path."""
    return not Path(source).exists() and source.count("/") == 1 and not source.startswith((".", "/", "~"))


def sought_on_hub(source: str) -> str:
    """Return the start of an error about a hub id: it may have been meant as a local path. Empty for other sources."""
    return f"there is no local folder {source}, so it was looked up on the hub: " if is_hub_id(source) else ""


def check_model_exists(source: str) -> None:
    """Raise ModelError for a MODEL that is neither a path, a hub id nor a built-in name."""
    names = (*PIPELINES, *ARCHITECTURES)
    if source not in names and not Path(source).exists() and not is_hub_id(source):
        builtin = ", ".join(names)
        raise ModelError(
            f"no folder or file {source}; expected a path, a hub id such as owner/name, or one of {builtin}"
        )


def check_data_exists(source: str) -> None:
    """Raise DataError for a DATA that is neither a path, a dataset id nor `digits`."""
    if source != "digits" and not Path(source).exists() and not is_hub_id(source):
        raise DataError(
            f"no images at {source}: no folder or file; expected a path, a dataset id such as owner/name, or digits"
        )
