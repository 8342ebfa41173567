"""Cosine scores of blocks: the change of direction between a block's input and its output."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from diffprune.architectures.depth.block_table import block_lists
from diffprune.calibration.calibration_set import Calibration
from diffprune.criteria.block_batches import with_fixed
from diffprune.criteria.score_pass import spaced_timesteps
from diffprune.criteria.scores import Scores
from diffprune.groups import Group
from diffprune.options import ScoringOptions
from diffprune.pipelines.predict import predict
from diffprune.runs.accumulator import Accumulator


@torch.no_grad()
def cosine(
    denoiser: nn.Module, groups: Sequence[Group], calibration: Calibration, options: ScoringOptions, sums: Accumulator
) -> Scores:
    """Return 1 - cosine similarity of tokens before and after the block, mean over tokens, images and timesteps.

    A block with several streams (image and text) gets the mean of its streams. Source: the block influence of
    ShortGPT (Men et al. 2024).
    """
    part = {g.name: sums.zeros(g.name, g.num_units) for g in groups}
    handles = []
    for name, block, module in _blocks(denoiser):

        def add(module: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name, block: int = block) -> None:
            part[name][block] += _direction_change([*args, *kwargs.values()], output)

        handles.append(module.register_forward_hook(add, with_kwargs=True))
    timesteps = spaced_timesteps(calibration, options, options.block_timesteps)
    try:
        for t in sums.iterate(timesteps, "blocks", "timesteps"):
            for batch in calibration.batches(t, options.batch_size):
                predict(denoiser, batch.noisy, batch.timesteps, batch.condition)
    finally:
        for handle in handles:
            handle.remove()
    num_images = len(calibration) * len(timesteps)
    return Scores("cosine", with_fixed(denoiser, {name: sums.total(name) / num_images for name in part}))


def _blocks(denoiser: nn.Module) -> Iterator[tuple[str, int, nn.Module]]:
    """Yield list, index and module of each block; of modules removed together, those of the first one's class."""
    for blocks in block_lists(denoiser):
        for index, unit in enumerate(blocks.units):
            modules = [denoiser.get_submodule(path) for path in unit]
            yield from ((blocks.name, index, module) for module in modules if type(module) is type(modules[0]))


def _direction_change(inputs: Sequence[Any], output: Any) -> float:
    """Return 1 - cosine, summed over images, between each output stream and the input most similar in that image.

    Streams are tokens (N, L, C), or feature maps (N, C, H, W). Only inputs of the stream's shape are compared.
    """
    streams = [x for x in (output if isinstance(output, tuple) else (output,)) if isinstance(x, Tensor)]
    candidates = [x for x in inputs if isinstance(x, Tensor) and x.is_floating_point()]
    changes = []
    for stream in streams:
        distances = [
            (1 - functional.cosine_similarity(x.float(), stream.float(), dim=1 if x.dim() == 4 else -1))
            .flatten(1)
            .mean(1)
            for x in candidates
            if x.shape == stream.shape
        ]
        if distances:
            changes.append(float(torch.stack(distances).amin(0).double().sum()))
    assert changes, "no output of the block has the shape of one of its inputs"
    return sum(changes) / len(changes)
