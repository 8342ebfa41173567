"""Compensation of a pruned denoiser on calibration images."""

from pathlib import Path

from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from diffprune.artifact.shorten import moves, path_after
from diffprune.calibration.calibration_set import Calibration
from diffprune.compute.placement import placed
from diffprune.groups import find_groups, kept_blocks, kept_indices
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
    batch_size: int,
    offloaded: bool = False,
    folder: Path | None = None,
) -> Compensation:
    """Change the weights of `small`, which `plan` made of `dense`, so that it gives what `dense` gives.

    Statistics and solutions are in fp32 and fp64; the result is rounded to the dtype that `small` has. batch_size:
    images per pass (memory only). offloaded: weights stay on the CPU and come to the device layer by layer. folder:
    where solved layers are kept until the end, so that the same call resumes.
    """
    groups = find_groups(dense, kinds=plan.kinds)
    units = {name: group.kept for name, group in plan.groups.items()}
    kept = kept_indices(groups, units, dense).rows
    moved = moves(dense, kept_blocks(groups, units))
    paths = {new: path for path, _ in dense.named_modules() if (new := path_after(path, moved))}
    batches = draw_weighted(calibration, options, batch_size)
    dtypes, device = [parameter.dtype for parameter in small.parameters()], calibration.clean.device
    nn.Module.float(small)
    try:
        with placed(dense, device, offloaded=offloaded), placed(small, device, offloaded=offloaded):
            store = None if folder is None else SolvedLayers(folder)
            return fit_layers(dense, small, kept, paths, batches, seed=options.seed, store=store)
    finally:
        for parameter, dtype in zip(small.parameters(), dtypes, strict=True):
            parameter.data = parameter.data.to(dtype)
