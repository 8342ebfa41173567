"""Scores and allocation, in one step or in several with the scores recomputed on what is left."""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, cast

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from diffprune.artifact.shorten import moves, path_after
from diffprune.calibration.calibration_set import Calibration
from diffprune.compute.autocast import autocast_forward
from diffprune.compute.placement import checkpointed, placed
from diffprune.criteria import BLOCK_CRITERIA, CRITERIA, Scores
from diffprune.criteria.block_batches import with_fixed
from diffprune.groups import Group, find_groups, kept_blocks, remove_units
from diffprune.options import PlanOptions, ScoringOptions
from diffprune.pipelines.predict import predict
from diffprune.planning.budget import Fitted, Kept, fit
from diffprune.runs.accumulator import Accumulator
from diffprune.runs.tensor_cache import CacheEntry

GONE = float("-inf")
"""Score of a unit that an earlier round has removed."""


@dataclass(frozen=True)
class Choice:
    """What stays, by which criteria, and facts about their last round."""

    kept: Kept
    criterion: str
    details: dict[str, Any]


def choose_units(
    denoiser: ModelMixin, groups: Sequence[Group], calibration: Calibration | None, options: PlanOptions,
    sums: Accumulator | None = None,
) -> Choice:  # fmt: skip
    """Score the units of a denoiser by `options.criterion`, its blocks by `options.block_criterion`; choose what stays.

    With several rounds, round r of R goes r / R of the way, on the scores of the model that the round before has
    left; a unit that is gone stays gone. sums: where the scores are kept meanwhile, so that the same call resumes. Of
    several processes all call this, share the work, and return the same.
    """
    scores, fitted = Scores("", {}), Fitted({g.name: tuple(range(g.num_units)) for g in groups})
    for number in range(1, options.rounds + 1):
        left, there = denoiser, groups
        if number > 1:
            left = remove_units(denoiser, groups, fitted.kept)
            there = find_groups(left, kinds={g.kind for g in groups})
        scores = score(left, there, calibration, options, sums, name=f"round-{number}")
        of_all = _of_all(denoiser, groups, fitted.kept, scores)
        fitted = fit(denoiser, groups, of_all, options, progress=number / options.rounds)
    timed = {} if fitted.latency is None else {"latency": asdict(fitted.latency)}
    return Choice(fitted.kept, scores.criterion, {**scores.details, **timed})


def score(
    denoiser: ModelMixin, groups: Sequence[Group], calibration: Calibration | None, options: ScoringOptions,
    sums: Accumulator | None = None, *, name: str = "scores",
) -> Scores:  # fmt: skip
    """Scores of the units within layers, and of the blocks, by the criterion of each.

    sums: as in `choose_units`, where these are kept by `name`.
    """
    assert options.criterion is not None
    sums = sums or Accumulator(options.device)
    units, blocks = [g for g in groups if g.kind != "blocks"], [g for g in groups if g.kind == "blocks"]
    parts = []
    if calibration is None:
        parts = [CRITERIA[options.criterion](denoiser, g, None, options, sums) for g in (units, blocks) if g]
    else:
        device, offloaded = calibration.clean.device, options.offload == "cpu"
        with placed(denoiser, device, offloaded=offloaded):
            serves = _computes(denoiser, calibration, options)
        whole = denoiser if serves else cast(ModelMixin, cast(Any, nn.Module).float(copy.deepcopy(denoiser)))
        with placed(whole, device, offloaded=offloaded):
            if units:
                checkpoints = checkpointed(whole) if options.gradient_checkpointing else nullcontext()
                with checkpoints, autocast_forward(options, whole, device):
                    criterion = partial(CRITERIA[options.criterion], whole, units, calibration, options)
                    parts.append(_once(sums, f"{name}-units", criterion))
            if blocks:
                block_criterion = partial(BLOCK_CRITERIA[options.block_criterion], whole, blocks, calibration, options)
                parts.append(_once(sums, f"{name}-blocks", block_criterion))
    values = {group: value for part in parts for group, value in part.values.items()}
    values |= with_fixed(denoiser, {g.name: values[g.name] for g in blocks})
    details = {fact: value for part in parts for fact, value in part.details.items()}
    return Scores(" and ".join(dict.fromkeys(part.criterion for part in parts)), values, details)


def _once(sums: Accumulator, name: str, criterion: Callable[[Accumulator], Scores]) -> Scores:
    """The scores of a criterion, kept once they are there."""

    def work(mine: Accumulator) -> CacheEntry:
        scores = criterion(mine)
        return dict(scores.values), {"criterion": scores.criterion, "details": dict(scores.details)}

    values, told = sums.cached(name, work)
    return Scores(told["criterion"], values, told["details"])


@torch.no_grad()
def _computes(denoiser: ModelMixin, calibration: Calibration, options: ScoringOptions) -> bool:
    """Whether gradients can be taken of the denoiser as it is stored; of others an fp32 copy is scored.

    fp16 has no range for gradients, and CPUs compute it slowly. bf16 has the range of fp32; sums, which need more
    digits, are kept in fp32. Few classes mix in fp32 values that bf16 layers then do not take: one pass tells.
    """
    dtypes = {parameter.dtype for parameter in denoiser.parameters()}
    if dtypes == {torch.float32} or torch.float16 in dtypes:
        return torch.float16 not in dtypes
    batch = next(calibration.batches(0, options.batch_size))
    try:
        predict(denoiser, batch.noisy, batch.timesteps, batch.condition)
    except RuntimeError as error:
        if "dtype" not in str(error):
            raise
        return False
    return True


def _of_all(denoiser: ModelMixin, groups: Sequence[Group], kept: Mapping[str, Sequence[int]], scores: Scores) -> Scores:
    """Scores of the units that are left, at their places among all units of the original groups."""
    moved = moves(denoiser, kept_blocks(groups, kept))
    values = {}
    for group in groups:
        values[group.name] = torch.full((group.num_units,), GONE, dtype=torch.float64)
        name, left = path_after(group.name, moved), list(kept[group.name])
        if left:  # else none of a list of blocks
            values[group.name][left] = 0.0 if name is None else scores.values[name]
    return Scores(scores.criterion, values, scores.details)
