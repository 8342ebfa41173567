"""Prune pretrained diffusion models, recover them, and judge what they draw.

Public names load on first use, so that `import diffprune` is cheap. Besides the names in `__all__`, every
diffusers model class is here under its own name (`diffprune.UNet2DModel`): the class of its pruned models.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from diffprune.artifact.registration import register_with_diffusers

if TYPE_CHECKING:
    from diffusers.models.modeling_utils import ModelMixin as ModelMixin

    from diffprune.architectures.families import register_family
    from diffprune.architectures.layouts import AttentionLayout, FeedForwardLayout
    from diffprune.errors import (
        DataError,
        DiffpruneError,
        FolderError,
        ManifestError,
        ModelError,
        OptionError,
        PlanError,
    )
    from diffprune.groups import Group, find_groups
    from diffprune.pipelines.class_conditional import ClassConditionalLDMPipeline, ClassEmbedding
    from diffprune.pipelines.loading import load_pipeline
    from diffprune.planning import Plan, read_plan
    from diffprune.stages.convert_stage import convert
    from diffprune.stages.evaluate_stage import evaluate
    from diffprune.stages.plan_stage import plan
    from diffprune.stages.prune_stage import prune
    from diffprune.stages.sample_stage import sample
    from diffprune.stages.stats_stage import stats
    from diffprune.stages.train_stage import finetune, train

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
    "ManifestError": "diffprune.errors",
    "ModelError": "diffprune.errors",
    "OptionError": "diffprune.errors",
    "Plan": "diffprune.planning",
    "PlanError": "diffprune.errors",
    "convert": "diffprune.stages.convert_stage",
    "evaluate": "diffprune.stages.evaluate_stage",
    "find_groups": "diffprune.groups",
    "finetune": "diffprune.stages.train_stage",
    "load_pipeline": "diffprune.pipelines.loading",
    "plan": "diffprune.stages.plan_stage",
    "prune": "diffprune.stages.prune_stage",
    "read_plan": "diffprune.planning",
    "register_family": "diffprune.architectures.families",
    "sample": "diffprune.stages.sample_stage",
    "stats": "diffprune.stages.stats_stage",
    "train": "diffprune.stages.train_stage",
}

__all__ = [
    "AttentionLayout",
    "ClassConditionalLDMPipeline",
    "ClassEmbedding",
    "DataError",
    "DiffpruneError",
    "FeedForwardLayout",
    "FolderError",
    "Group",
    "ManifestError",
    "ModelError",
    "OptionError",
    "Plan",
    "PlanError",
    "convert",
    "evaluate",
    "find_groups",
    "finetune",
    "load_pipeline",
    "plan",
    "prune",
    "read_plan",
    "register_family",
    "sample",
    "stats",
    "train",
]

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
