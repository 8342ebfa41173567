"""Block scores by the output: how far it moves when a block is left out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import nn

from diffprune.criteria.blocks import spaced_batches, with_fixed
from diffprune.criteria.scores import Scores
from diffprune.data.calibration import Calibration
from diffprune.groups import Group
from diffprune.models.depth import block_lists
from diffprune.models.families import predict
from diffprune.options import PlanOptions
from diffprune.progress import progress


@torch.no_grad()
def bypass(denoiser: nn.Module, groups: Sequence[Group], calibration: Calibration, options: PlanOptions) -> Scores:
    """Mean squared change of the prediction without the block, over images and timesteps.

    Source: the layer scores of LAPTOP-Diff (Zhang et al. 2024) and of ShortGPT (Men et al. 2024), on the output.
    """
    total = {g.name: torch.zeros(g.num_units, dtype=torch.float64) for g in groups}
    batches = spaced_batches(calibration, options, options.block_timesteps)
    with progress("blocks", len(batches), "batches") as advance:
        for batch in batches:
            whole = predict(denoiser, batch.noisy, batch.timesteps, batch.condition).float()
            for group in groups:
                for block in range(group.num_units):
                    with _without(denoiser, group.name, block):
                        output = predict(denoiser, batch.noisy, batch.timesteps, batch.condition).float()
                    total[group.name][block] += float((output - whole).square().flatten(1).mean(1).double().sum())
            advance(1, "")
    num_images = sum(len(batch.noisy) for batch in batches)
    return Scores("bypass", with_fixed(denoiser, {name: sums / num_images for name, sums in total.items()}))


@contextmanager
def _without(denoiser: nn.Module, name: str, block: int) -> Iterator[None]:
    """Take a block out of its lists for a while."""
    paths = next(found.paths for found in block_lists(denoiser) if found.name == name)
    whole = {path: cast(nn.ModuleList, denoiser.get_submodule(path)) for path in paths}
    try:
        for path, modules in whole.items():
            _put(denoiser, path, nn.ModuleList(m for i, m in enumerate(modules) if i != block))
        yield
    finally:
        for path, modules in whole.items():
            _put(denoiser, path, modules)


def _put(denoiser: nn.Module, path: str, modules: nn.ModuleList) -> None:
    parent, _, last = path.rpartition(".")
    setattr(denoiser.get_submodule(parent), last, modules)
