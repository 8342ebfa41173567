"""Surgery: a model and a plan in, a smaller model out; the original is untouched."""

from typing import Any, cast

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from diffprune.errors import ModelError
from diffprune.groups import find_groups, smaller
from diffprune.models.manifest import manifest_of
from diffprune.models.pruned import PrunedMixin, pruned_class, stock_class, stock_model
from diffprune.models.soundness import check_sound
from diffprune.planning import Plan


def prune_denoiser(denoiser: ModelMixin, plan: Plan, *, reinit: bool = False, seed: int = 0) -> ModelMixin:
    """The denoiser with only the planned units, as a pruned class that saves its manifest.

    reinit: draw fresh weights (each layer's own initialisation, by `seed`) instead of slicing the old ones.
    A denoiser without weights can only be pruned with reinit.
    Raises PlanError when the plan is for another model, ModelError when there are no weights to keep or the denoiser is
    not sound (`check_sound`).
    """
    check_sound(denoiser)
    groups = find_groups(denoiser, kinds=plan.kinds)
    plan.check_fits(denoiser, groups)
    if not reinit and any(p.device.type == "meta" for p in denoiser.parameters()):
        raise ModelError("this is an architecture without weights; give a pretrained model, or use reinit")
    small = smaller(denoiser, groups, {name: units.kept for name, units in plan.groups.items()})
    if reinit:
        _materialise(small)
        reset_weights(small, seed)
    history = list(denoiser.pruning_provenance) if isinstance(denoiser, PrunedMixin) else []
    return _as_pruned(small, [*history, _provenance(plan, reinit)])


def _as_pruned(small: ModelMixin, history: list[dict[str, Any]]) -> ModelMixin:
    """Turn a shrunk model into its pruned class; one that its config describes whole is a stock model.

    A module that is no diffusers model stays of its own class: saving and loading it is its owner's affair.
    """
    if not isinstance(small, ModelMixin):
        return small
    stock = stock_class(small)
    if not manifest_of(small, stock_model(small), []).modules:
        small.__class__ = stock
        return small
    small.__class__ = pruned_class(stock)
    cast(Any, small).pruning_provenance = history
    return small


def _provenance(plan: Plan, reinit: bool) -> dict[str, Any]:
    """What a manifest tells of one pruning."""
    return {
        "criterion": plan.criterion,
        "options": plan.options,
        "reinit": reinit,
        "params_before": plan.before.params,
        "params_after": plan.after.params,
        "macs_before": plan.before.macs,
        "macs_after": plan.after.macs,
    }


def _materialise(model: ModelMixin) -> None:
    """Give parameters of the meta device memory; buffers, which hold tables, stay as they are."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.device.type == "meta":
                setattr(module, name, nn.Parameter(torch.empty_like(parameter, device="cpu")))


def reset_weights(model: ModelMixin, seed: int) -> None:
    """Draw fresh weights in place: each layer's own initialisation, in order, by seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for path, module in model.named_modules():
            if not list(module.parameters(recurse=False)):
                continue
            reset = getattr(module, "reset_parameters", None)
            if reset is None:
                raise ModelError(f"{path}: a {type(module).__name__} has no initialisation of its own; cannot reinit")
            reset()
