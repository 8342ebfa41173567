"""Surgery: remove the units of a plan from a model, in memory or on disk; the original is not changed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from diffprune.artifact.manifest import manifest_of
from diffprune.artifact.pruned_classes import PrunedMixin, pruned_class, stock_class, stock_model
from diffprune.artifact.safetensors_io import FLOATING, StoredTensor, read_tensor, write_shards
from diffprune.artifact.shorten import moves, path_after
from diffprune.artifact.slicing import parameter_slices, slice_tensor
from diffprune.errors import ModelError
from diffprune.groups import kept_blocks, kept_indices, remove_units
from diffprune.planning import Plan, Prepared


def prune_denoiser(
    prepared: Prepared, plan: Plan, *, reinit: bool = False, rescale_queries: bool = False, seed: int = 0
) -> ModelMixin:
    """Return a copy of the denoiser with the units of a plan alone; `save_pretrained` of its class saves a manifest.

    Args:
        prepared: the model, with the kinds of the plan.
        plan: the units to keep.
        reinit: draw new weights by each layer's own initialization, instead of slicing the old ones.
        rescale_queries: rescale queries of narrower attention heads, see `rescale`.
        seed: seed of the new weights.

    Raises:
        PlanError: the plan is for another model.
        ModelError: an architecture without weights, unless `reinit`.
    """
    denoiser = prepared.denoiser
    check_weights(denoiser, reinit=reinit)
    small = remove_units(denoiser, prepared.groups, kept_by(plan, prepared))
    if reinit:
        _materialize(small)
        reset_weights(small, seed)
    entry = _provenance(plan, reinit)
    if rescale_queries:
        entry["rescaled_queries"] = rescale(denoiser, small)
    return _as_pruned(small, [*_history(denoiser), entry])


def check_weights(denoiser: nn.Module, *, reinit: bool) -> None:
    """Raise ModelError for an architecture without weights, unless `reinit`."""
    if not reinit and any(p.device.type == "meta" for p in denoiser.parameters()):
        raise ModelError("this is an architecture without weights; give a pretrained model, or set reinit")


def prune_stored(prepared: Prepared, weights: Mapping[str, StoredTensor], plan: Plan, out: Path) -> ModelMixin:
    """Write the result of `prune_denoiser` into the folder `out`, one tensor at a time; return its architecture.

    Args:
        prepared: the architecture, on the meta device, with the kinds of the plan.
        weights: its stored tensors by name.
        plan: the units to keep.
        out: folder of the pruned denoiser.

    Raises:
        PlanError: the plan is for another model.
    """
    denoiser, groups, kept = prepared.denoiser, prepared.groups, kept_by(plan, prepared)
    small = _as_pruned(remove_units(denoiser, groups, kept), [*_history(denoiser), _provenance(plan, reinit=False)])
    cuts = parameter_slices(denoiser, kept_indices(groups, kept, denoiser))
    moved = moves(denoiser, kept_blocks(groups, kept))
    sources = {new: name for name in weights if (new := path_after(name, moved)) is not None}
    tensors = {
        name: torch.empty(value.shape, dtype=FLOATING[weights[sources[name]].dtype], device="meta")
        for name, value in cast(nn.Module, small).state_dict().items()
    }
    small.save_config(out)
    if isinstance(small, PrunedMixin):
        small.save_manifest(out)

    def value(name: str) -> Tensor:
        source = sources[name]
        return slice_tensor(read_tensor(source, weights[source]), cuts.get(source, ()))

    write_shards(out, tensors, value)
    return small


def kept_by(plan: Plan, prepared: Prepared) -> dict[str, tuple[int, ...]]:
    """Return the kept units of each group; raise PlanError if the plan does not fit the model."""
    plan.check_fits(prepared)
    return {name: units.kept for name, units in plan.groups.items()}


def _history(denoiser: nn.Module) -> list[dict[str, Any]]:
    """Return the manifest entries of earlier prunings."""
    return list(denoiser.pruning_provenance) if isinstance(denoiser, PrunedMixin) else []


@torch.no_grad()
def rescale(before: nn.Module, after: nn.Module) -> list[str]:
    """Multiply the queries of attentions whose head width fell from d to d' by sqrt(d' / d); return their paths.

    Attention divides its products by sqrt(d'). With the factor they equal the products of the wider heads with zeros
    for the removed channels, divided by sqrt(d). Attentions that normalize their queries need no factor.
    """
    changed = []
    originals = dict(before.named_modules())
    for path, attention in after.named_modules():
        original: Any = originals.get(path)
        if not isinstance(attention, Attention) or not isinstance(original, Attention) or attention.norm_q is not None:
            continue
        new_width, old_width = (a.to_q.out_features // a.heads for a in (attention, original))
        if new_width != old_width:
            for parameter in attention.to_q.parameters():
                parameter.mul_((new_width / old_width) ** 0.5)
            changed.append(path)
    return changed


def _as_pruned(small: ModelMixin, history: list[dict[str, Any]]) -> ModelMixin:
    """Set the class of a pruned model: its pruned class, or its stock class if its config describes it completely.

    A module that is not a diffusers model keeps its class.
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
    """Return the manifest entry of one pruning. Feature distillation reads the kept channels."""
    return {
        "criterion": plan.criterion,
        "options": plan.options,
        "reinit": reinit,
        "params_before": plan.before.params,
        "params_after": plan.after.params,
        "macs_before": plan.before.macs,
        "macs_after": plan.after.macs,
        "kept_channels": {
            name: list(units.kept)
            for name, units in plan.groups.items()
            if units.kind == "channels" and len(units.kept) < units.num_units
        },
    }


def _materialize(model: ModelMixin) -> None:
    """Allocate the parameters on the meta device; buffers, which hold tables, keep their values."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.device.type == "meta":
                setattr(module, name, nn.Parameter(torch.empty_like(parameter, device="cpu")))


def reset_weights(model: ModelMixin, seed: int) -> None:
    """Reinitialize the weights in place by each layer's `reset_parameters`, in order, by seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for path, module in model.named_modules():
            if not list(module.parameters(recurse=False)):
                continue
            reset = getattr(module, "reset_parameters", None)
            if reset is None:
                raise ModelError(
                    f"{path}: reinit is not supported for {type(module).__name__}, which has no reset_parameters(); "
                    "prune without reinit"
                )
            reset()
