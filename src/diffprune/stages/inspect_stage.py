"""Command `inspect`: report the class, cost, prunable units and pruning history of a model."""

from collections import Counter
from typing import Any

from diffprune.artifact.pruned_classes import PrunedMixin, stock_model
from diffprune.compute.autocast import autocast_forward
from diffprune.compute.cost import cost_of, latency_ms
from diffprune.compute.device import pick_device
from diffprune.compute.placement import placed
from diffprune.groups import find_blocks, find_groups
from diffprune.groups.outline import outline
from diffprune.options import InspectOptions
from diffprune.pipelines.loading import load_model


def inspect_stage(source: str, options: InspectOptions) -> dict[str, Any]:
    """Return facts about MODEL, with one row per block; latency is measured only if the model has weights."""
    model = load_model(source)
    denoiser = model.denoiser
    groups = (*find_groups(denoiser), *find_blocks(denoiser))
    kinds = Counter(group.kind for group in groups)
    facts: dict[str, Any] = {
        "class_name": type(denoiser).__name__,
        "pipeline": type(model.pipeline).__name__ if model.pipeline is not None else None,
        **cost_of(denoiser).as_dict(),
        "latency_ms": None,
        "num_groups": len(groups),
        "units": {kind: sum(g.num_units for g in groups if g.kind == kind) for kind in kinds},
        "pruned": isinstance(denoiser, PrunedMixin),
    }
    if isinstance(denoiser, PrunedMixin):
        facts["params_stock"] = sum(p.numel() for p in stock_model(denoiser).parameters())
        facts["prunings"] = [
            {k: step.get(k) for k in ("criterion", "reinit", "params_before", "params_after")}
            | {"ratio": (step.get("options") or {}).get("ratio")}
            for step in denoiser.pruning_provenance
        ]
    if options.latency and model.has_weights:
        device = pick_device(options.device)
        with placed(denoiser, device), autocast_forward(options, denoiser, device):
            facts["latency_ms"] = round(latency_ms(denoiser), 3)
    return {**facts, "blocks": outline(denoiser, groups)}
