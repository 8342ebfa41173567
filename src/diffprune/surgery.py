"""Surgery: a model and a plan in, a smaller model out; the original is untouched."""

from typing import Any, cast

import torch
from diffusers.models.modeling_utils import ModelMixin

from diffprune.errors import ModelError
from diffprune.groups import find_groups, kept_indices
from diffprune.models.pruned import PrunedMixin, pruned_class, stock_class
from diffprune.models.resize import shrink
from diffprune.planning import Plan


def prune_denoiser(denoiser: ModelMixin, plan: Plan, *, reinit: bool = False, seed: int = 0) -> ModelMixin:
    """The denoiser with only the planned units, as a pruned class that saves its manifest.

    reinit: draw fresh weights (each layer's own initialisation, by `seed`) instead of slicing the old ones.
    A denoiser without weights can only be pruned with reinit.
    Raises PlanError when the plan is for another model, ModelError when there are no weights to keep.
    """
    groups = find_groups(denoiser)
    plan.check_fits(denoiser, groups)
    if not reinit and any(p.device.type == "meta" for p in denoiser.parameters()):
        raise ModelError("this is an architecture without weights; give a pretrained model, or use reinit")
    kept = kept_indices(groups, {name: units.kept for name, units in plan.groups.items()}, denoiser)
    device = next(denoiser.parameters()).device
    small = shrink(denoiser, kept)
    if device.type == "meta":
        small = small.to_empty(device="cpu")
    if reinit:
        reset_weights(small, seed)
    return as_pruned(small, plan, reinit=reinit)


def as_pruned(small: ModelMixin, plan: Plan, *, reinit: bool) -> ModelMixin:
    """Turn a shrunk model into its pruned class and note in its provenance what was done."""
    history = list(small.pruning_provenance) if isinstance(small, PrunedMixin) else []
    entry: dict[str, Any] = {
        "criterion": plan.criterion,
        "options": plan.options,
        "reinit": reinit,
        "params_before": plan.before.params,
        "params_after": plan.after.params,
        "macs_before": plan.before.macs,
        "macs_after": plan.after.macs,
    }
    small.__class__ = pruned_class(stock_class(small))
    cast(Any, small).pruning_provenance = [*history, entry]
    return small


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
