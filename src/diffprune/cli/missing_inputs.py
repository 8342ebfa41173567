"""Refuse a MODEL or DATA that does not exist, before torch is imported."""

from collections.abc import Mapping
from typing import Any

from diffprune.pipelines.model_source import check_data_exists, check_model_exists

MODELS = ("model", "teacher")
"""Arguments that take a MODEL."""

DATA = ("data", "images", "reference")
"""Arguments that take DATA."""


def refuse_missing_inputs(arguments: Mapping[str, Any]) -> None:
    """Raise ModelError or DataError for the first input that is no path that exists, hub id or built-in name."""
    for name in MODELS:
        if arguments.get(name) is not None:
            check_model_exists(arguments[name])
    for name in DATA:
        if arguments.get(name) not in (None, "none", "generated"):
            check_data_exists(arguments[name])
