"""Surgery: a model and a plan in, a smaller model out, in memory or on disk; the original is untouched."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from diffprune.artifact.manifest import manifest_of
from diffprune.artifact.preconditions import check_sound
from diffprune.artifact.pruned_classes import PrunedMixin, pruned_class, stock_class, stock_model
from diffprune.artifact.safetensors_io import FLOATING, StoredTensor, read_tensor, write_shards
from diffprune.artifact.shorten import moves, path_after
from diffprune.artifact.slicing import parameter_slices, slice_tensor
from diffprune.errors import ModelError
from diffprune.groups import Group, find_groups, kept_blocks, kept_indices, remove_units
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
    groups, kept = _fitting(denoiser, plan)
    check_weights(denoiser, reinit=reinit)
    small = remove_units(denoiser, groups, kept)
    if reinit:
        _materialise(small)
        reset_weights(small, seed)
    entry = _provenance(plan, reinit)
    if rescale_queries:
        entry["rescaled_queries"] = rescale(denoiser, small)
    return _as_pruned(small, [*_history(denoiser), entry])


def check_weights(denoiser: nn.Module, *, reinit: bool) -> None:
    """Raise ModelError for an architecture whose weights are to be kept."""
    if not reinit and any(p.device.type == "meta" for p in denoiser.parameters()):
        raise ModelError("this is an architecture without weights; give a pretrained model, or use reinit")


def prune_stored(denoiser: ModelMixin, weights: Mapping[str, StoredTensor], plan: Plan, out: Path) -> ModelMixin:
    """Write what `prune_denoiser` would leave into the folder `out`, reading and writing one tensor at a time.

    denoiser: the architecture, on the meta device. weights: its tensors, by name. Returns the pruned architecture.
    Raises PlanError when the plan is for another model.
    """
    groups, kept = _fitting(denoiser, plan)
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


def _fitting(denoiser: ModelMixin, plan: Plan) -> tuple[tuple[Group, ...], dict[str, tuple[int, ...]]]:
    """The groups of a sound denoiser, and what a plan that fits it keeps of them."""
    check_sound(denoiser)
    groups = find_groups(denoiser, kinds=plan.kinds)
    plan.check_fits(denoiser, groups)
    return groups, {name: units.kept for name, units in plan.groups.items()}


def _history(denoiser: nn.Module) -> list[dict[str, Any]]:
    return list(denoiser.pruning_provenance) if isinstance(denoiser, PrunedMixin) else []


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
    """What a manifest tells of one pruning. The kept channels are there for recovery, which compares features."""
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
