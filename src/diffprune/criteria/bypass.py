"""Bypass scores of blocks: the change of the denoiser's output when a block is skipped."""

from collections.abc import Sequence
from typing import cast

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from diffprune.artifact.shorten import keep_blocks
from diffprune.calibration.calibration_set import Calibration, NoisyBatch
from diffprune.criteria.block_batches import spaced_batches, with_fixed
from diffprune.criteria.scores import Scores
from diffprune.groups import Group, fixed_blocks
from diffprune.options import ScoringOptions
from diffprune.pipelines.predict import predict
from diffprune.runs.accumulator import Accumulator


@torch.no_grad()
def bypass(
    denoiser: nn.Module, groups: Sequence[Group], calibration: Calibration, options: ScoringOptions, sums: Accumulator
) -> Scores:
    """Return the mean squared change of the prediction without the block, over images and timesteps.

    Source: the layer scores of LAPTOP-Diff (Zhang et al. 2024) and of ShortGPT (Men et al. 2024), on the output.
    """
    part = {g.name: sums.zeros(g.name, g.num_units) for g in groups}
    fixed = fixed_blocks(denoiser)
    blocks = [(g, i) for g in groups for i in range(g.num_units) if i not in fixed[g.name]]
    predictions = [
        _prediction(denoiser, batch) for batch in spaced_batches(calibration, options, options.block_timesteps)
    ]
    num_images = sum(len(prediction) for prediction in predictions)
    for group, block in sums.iterate(blocks, "blocks", "blocks"):
        others = [i for i in range(group.num_units) if i != block]
        shorter = keep_blocks(cast(ModelMixin, denoiser), {group.name: others})
        batches = spaced_batches(calibration, options, options.block_timesteps)
        changes = (_prediction(shorter, batch) - before for batch, before in zip(batches, predictions, strict=True))
        total = sum(float(change.square().flatten(1).mean(1).double().sum()) for change in changes)
        part[group.name][block] = total / num_images
    return Scores("bypass", with_fixed(denoiser, {name: sums.total(name) for name in part}))


def _prediction(denoiser: nn.Module, batch: NoisyBatch) -> Tensor:
    return predict(denoiser, batch.noisy, batch.timesteps, batch.condition).float().cpu()
