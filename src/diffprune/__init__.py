"""Prune pretrained diffusion models, recover them, and evaluate the images that they draw.

Public names load on first use, so that `import diffprune` is cheap. Every diffusers model class also has a pruned
class of the same name here, such as `diffprune.UNet2DModel`: the class of its pruned models.
"""

from importlib import import_module
from typing import Any

from diffprune.artifact.registration import register_with_diffusers

__version__ = "0.1.0"

_HOMES = {
    "AttentionLayout": "diffprune.architectures.layouts",
    "ClassConditionalLDMPipeline": "diffprune.pipelines.class_conditional",
    "ClassEmbedding": "diffprune.pipelines.class_conditional",
    "DataError": "diffprune.errors",
    "DiffpruneError": "diffprune.errors",
    "FeedForwardLayout": "diffprune.architectures.layouts",
    "FolderError": "diffprune.errors",
    "Group": "diffprune.groups",
    "ImageStatistics": "diffprune.evaluation.feature_statistics",
    "ManifestError": "diffprune.errors",
    "ModelError": "diffprune.errors",
    "OptionError": "diffprune.errors",
    "Plan": "diffprune.planning",
    "PlanError": "diffprune.errors",
    "Recipe": "diffprune.options.recipe",
    "ReportPage": "diffprune.api.results",
    "Results": "diffprune.api.results",
    "analyze_plan": "diffprune.api.report_functions",
    "analyze_sensitivity": "diffprune.api.report_functions",
    "analyze_stages": "diffprune.api.report_functions",
    "convert": "diffprune.api.pruning_functions",
    "evaluate": "diffprune.api.image_functions",
    "find_groups": "diffprune.groups",
    "finetune": "diffprune.api.training_functions",
    "inspect": "diffprune.api.pruning_functions",
    "load_pipeline": "diffprune.pipelines.loading",
    "plan": "diffprune.api.pruning_functions",
    "prepare_data": "diffprune.api.image_functions",
    "prune": "diffprune.api.pruning_functions",
    "read_plan": "diffprune.planning",
    "read_recipe": "diffprune.options.recipe",
    "register_family": "diffprune.architectures.families",
    "report": "diffprune.api.report_functions",
    "run": "diffprune.api.report_functions",
    "sample": "diffprune.api.image_functions",
    "stats": "diffprune.api.image_functions",
    "train": "diffprune.api.training_functions",
    "train_classifier": "diffprune.api.training_functions",
}
"""Public name -> module. The stub next to this file, `__init__.pyi`, is made from it by `scripts/make_stub.py`."""

__all__ = [*_HOMES]

register_with_diffusers()


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "ModelMixin":
        return import_module("diffusers").ModelMixin
    if name.startswith("_") or not name[0].isupper():
        raise AttributeError(f"module 'diffprune' has no attribute {name!r}")
    return import_module("diffprune.artifact.pruned_classes").class_by_name(name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
