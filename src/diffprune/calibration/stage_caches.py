"""Caches in the output folder of a stage: latents, and sums of scores."""

import shutil
from pathlib import Path

from diffprune.calibration.latent_cache import LATENTS, LatentCache
from diffprune.options import ScoringOptions
from diffprune.runs.accumulator import Accumulator
from diffprune.runs.run_record import Inputs

SUMS = "sums"
"""Subfolder of the cached sums of scores; removed when the stage has finished."""


def latents_in(folder: Path, inputs: Inputs) -> LatentCache:
    """Return the latent cache of a stage that writes into `folder`, keyed by the inputs of the stage."""
    return LatentCache(folder / LATENTS, {"inputs": inputs})


def sums_in(folder: Path, inputs: Inputs, options: ScoringOptions) -> Accumulator:
    """Return the cached sums of scores of a stage that writes into `folder`, keyed by its inputs and options."""
    return Accumulator(options.device, folder / SUMS, {"inputs": inputs, "options": options.decisive()})


def remove_caches(folder: Path) -> None:
    """Remove the caches of latents and of sums."""
    for name in (LATENTS, SUMS):
        shutil.rmtree(folder / name, ignore_errors=True)
