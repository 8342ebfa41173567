"""Surgery: a model and a plan in, a smaller model out; the original is untouched."""

from typing import Any, cast

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from diffprune.errors import ModelError
from diffprune.groups import find_groups, smaller
from diffprune.models.manifest import manifest_of
from diffprune.models.pruned import PrunedMixin, pruned_class, stock_class, stock_model
from diffprune.models.soundness import check_sound
from diffprune.planning import Plan


def prune_denoiser(
    denoiser: ModelMixin, plan: Plan, *, reinit: bool = False, rescale_queries: bool = False, seed: int = 0
) -> ModelMixin:
    """The denoiser with only the planned units, as a pruned class that saves its manifest.

    reinit: draw fresh weights (each layer's own initialisation, by `seed`) instead of slicing the old ones.
    rescale_queries: see `rescale`. A denoiser without weights can only be pruned with reinit.
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
    entry = _provenance(plan, reinit)
    if rescale_queries:
        entry["rescaled_queries"] = rescale(denoiser, small)
    history = list(denoiser.pruning_provenance) if isinstance(denoiser, PrunedMixin) else []
    return _as_pruned(small, [*history, entry])


@torch.no_grad()
def rescale(before: nn.Module, after: nn.Module) -> list[str]:
    """Multiply the queries of every attention whose heads grew narrower, d to d', by sqrt(d' / d); returns their paths.

    Attention scales by 1 / sqrt(d'); with the factor its products are those of the wider heads with zeros in place of
    what is gone, divided by sqrt(d) as before. Attentions that normalise their queries need none.
    """
    changed = []
    wide = dict(before.named_modules())
    for path, attention in after.named_modules():
        old: Any = wide.get(path)
        if not isinstance(attention, Attention) or not isinstance(old, Attention) or attention.norm_q is not None:
            continue
        new_width, old_width = (a.to_q.out_features // a.heads for a in (attention, old))
        if new_width != old_width:
            for parameter in attention.to_q.parameters():
                parameter.mul_((new_width / old_width) ** 0.5)
            changed.append(path)
    return changed


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
