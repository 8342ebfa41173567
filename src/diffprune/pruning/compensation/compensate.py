"""Compensation of a pruned denoiser on calibration images."""

from collections.abc import Sequence
from pathlib import Path

from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from diffprune.artifact.shorten import moves, path_after
from diffprune.calibration.calibration_set import Calibration
from diffprune.compute.placement import placed
from diffprune.groups import Group, kept_blocks, kept_indices
from diffprune.options import PruneOptions
from diffprune.planning import Plan
from diffprune.pruning.compensation.layer_cache import SolvedLayers
from diffprune.pruning.compensation.layerwise import Compensation, fit_layers
from diffprune.pruning.compensation.noised_images import draw_weighted


def compensate(
    dense: ModelMixin,
    small: ModelMixin,
    plan: Plan,
    calibration: Calibration,
    options: PruneOptions,
    *,
    groups: Sequence[Group],
    batch_size: int,
    offloaded: bool = False,
    folder: Path | None = None,
) -> Compensation:
    """Fit the weights of `small` in place, so that its output comes near to the output of `dense`.

    `small` is fp32 and sums are fp64 during the fit, whatever the autocast dtype of other passes: a fit to outputs in
    bf16 would fit their rounding. The result is rounded to the dtype of `small`.

    Args:
        dense: the denoiser before pruning; its weights are not changed.
        small: `dense` pruned by `plan`.
        plan: the kept units of each group.
        calibration: images, noise and conditioning; the fit runs on their device.
        options: number of images, weighting of timesteps and seed.
        groups: groups of `dense`, of the plan's kinds.
        batch_size: images per forward pass. It changes memory and time, and results by rounding alone.
        offloaded: keep weights on the CPU and copy them to the device layer by layer.
        folder: cache of solved layers, so that an interrupted call resumes; None caches nothing.
    """
    units = {name: group.kept for name, group in plan.groups.items()}
    kept = kept_indices(groups, units, dense).rows
    moved = moves(dense, kept_blocks(groups, units))
    paths = {new: path for path, _ in dense.named_modules() if (new := path_after(path, moved))}
    batches = draw_weighted(calibration, options, batch_size)
    dtypes, device = [parameter.dtype for parameter in small.parameters()], calibration.clean.device
    nn.Module.float(small)
    try:
        with placed(dense, device, offloaded=offloaded), placed(small, device, offloaded=offloaded):
            cache = None if folder is None else SolvedLayers(folder)
            return fit_layers(dense, small, kept, paths, batches, seed=options.seed, cache=cache)
    finally:
        for parameter, dtype in zip(small.parameters(), dtypes, strict=True):
            parameter.data = parameter.data.to(dtype)
