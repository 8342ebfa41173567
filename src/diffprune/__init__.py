"""Prune pretrained diffusion models, recover them, and judge what they draw.

Public names load on first use, so that `import diffprune` is cheap. Besides the names in `__all__`, every
diffusers model class is here under its own name (`diffprune.UNet2DModel`): the class of its pruned models.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from diffprune.models.registration import register_with_diffusers

if TYPE_CHECKING:
    from diffusers.models.modeling_utils import ModelMixin as ModelMixin

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
    from diffprune.models.class_conditional import ClassConditionalLDMPipeline, ClassEmbedding
    from diffprune.models.families import register_family
    from diffprune.models.layouts import AttentionLayout, FeedForwardLayout
    from diffprune.models.loading import load_pipeline
    from diffprune.planning import Plan, read_plan
    from diffprune.stages.convert import convert
    from diffprune.stages.evaluate import evaluate
    from diffprune.stages.plan import plan
    from diffprune.stages.prune import prune
    from diffprune.stages.sample import sample
    from diffprune.stages.stats import stats
    from diffprune.stages.train import finetune, train

__version__ = "0.1.0"

_HOMES = {
    "AttentionLayout": "diffprune.models.layouts",
    "ClassConditionalLDMPipeline": "diffprune.models.class_conditional",
    "ClassEmbedding": "diffprune.models.class_conditional",
    "DataError": "diffprune.errors",
    "DiffpruneError": "diffprune.errors",
    "FeedForwardLayout": "diffprune.models.layouts",
    "FolderError": "diffprune.errors",
    "Group": "diffprune.groups",
    "ManifestError": "diffprune.errors",
    "ModelError": "diffprune.errors",
    "OptionError": "diffprune.errors",
    "Plan": "diffprune.planning",
    "PlanError": "diffprune.errors",
    "convert": "diffprune.stages.convert",
    "evaluate": "diffprune.stages.evaluate",
    "find_groups": "diffprune.groups",
    "finetune": "diffprune.stages.train",
    "load_pipeline": "diffprune.models.loading",
    "plan": "diffprune.stages.plan",
    "prune": "diffprune.stages.prune",
    "read_plan": "diffprune.planning",
    "register_family": "diffprune.models.families",
    "sample": "diffprune.stages.sample",
    "stats": "diffprune.stages.stats",
    "train": "diffprune.stages.train",
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
    return import_module("diffprune.models.pruned").class_by_name(name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
