"""Block scores by the output: how far it moves when a block is left out."""

from collections.abc import Sequence
from typing import cast

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from diffprune.criteria.blocks import spaced_batches, with_fixed
from diffprune.criteria.scores import Scores
from diffprune.data.calibration import Calibration, NoisyBatch
from diffprune.groups import Group, fixed_blocks
from diffprune.models.depth import keep_blocks
from diffprune.models.families import predict
from diffprune.options import PlanOptions
from diffprune.progress import progress


@torch.no_grad()
def bypass(denoiser: nn.Module, groups: Sequence[Group], calibration: Calibration, options: PlanOptions) -> Scores:
    """Mean squared change of the prediction without the block, over images and timesteps.

    Source: the layer scores of LAPTOP-Diff (Zhang et al. 2024) and of ShortGPT (Men et al. 2024), on the output.
    """
    values = {g.name: torch.zeros(g.num_units, dtype=torch.float64) for g in groups}
    fixed = fixed_blocks(denoiser)
    blocks = [(g, i) for g in groups for i in range(g.num_units) if i not in fixed[g.name]]
    batches = spaced_batches(calibration, options, options.block_timesteps)
    num_images = sum(len(batch.noisy) for batch in batches)
    whole = [_prediction(denoiser, batch) for batch in batches]
    with progress("blocks", len(blocks), "blocks") as advance:
        for group, block in blocks:
            others = [i for i in range(group.num_units) if i != block]
            left = keep_blocks(cast(ModelMixin, denoiser), {group.name: others})
            changes = (_prediction(left, b) - before for b, before in zip(batches, whole, strict=True))
            total = sum(float(change.square().flatten(1).mean(1).double().sum()) for change in changes)
            values[group.name][block] = total / num_images
            advance(1, "")
    return Scores("bypass", with_fixed(denoiser, values))


def _prediction(denoiser: nn.Module, batch: NoisyBatch) -> Tensor:
    return predict(denoiser, batch.noisy, batch.timesteps, batch.condition).float().cpu()
