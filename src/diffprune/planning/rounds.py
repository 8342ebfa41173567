"""Choose units by score and budget, in one round, or in several rounds with recomputed scores."""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, cast

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from diffprune.calibration.calibration_set import Calibration
from diffprune.compute.autocast import autocast_forward
from diffprune.compute.placement import checkpointed, placed
from diffprune.criteria import BLOCK_CRITERIA, CRITERIA, Scores
from diffprune.criteria.block_batches import with_fixed
from diffprune.groups import Group, reduced_groups, remove_units
from diffprune.options import PlanOptions, ScoringOptions
from diffprune.pipelines.predict import predict
from diffprune.planning.budget import Fitted, Kept, fit
from diffprune.runs.accumulator import Accumulator
from diffprune.runs.tensor_cache import CacheEntry

REMOVED = float("-inf")
"""Score of a unit that an earlier round has removed."""


@dataclass(frozen=True)
class Choice:
    """The kept units of each group, the criteria, and details of the scores of the last round."""

    kept: Kept
    criterion: str
    details: dict[str, Any]


def choose_units(
    denoiser: ModelMixin, groups: Sequence[Group], calibration: Calibration | None, options: PlanOptions,
    sums: Accumulator | None = None,
) -> Choice:  # fmt: skip
    """Score units by `options.criterion` and blocks by `options.block_criterion`, and choose the units to keep.

    Round r of R reaches r / R of the reduction, by scores of the model pruned by round r - 1. Removed units are
    not restored. sums: cache of the scores, so that an interrupted call resumes. All ranks call this, share the work
    and return the same choice.
    """
    scores, fitted = Scores("", {}), Fitted({g.name: tuple(range(g.num_units)) for g in groups})
    for number in range(1, options.rounds + 1):
        model, reduced = denoiser, {group.name: group for group in groups}
        if number > 1:
            model, reduced = remove_units(denoiser, groups, fitted.kept), reduced_groups(denoiser, groups, fitted.kept)
        scores = score(model, list(reduced.values()), calibration, options, sums, name=f"round-{number}")
        of_all = _of_all(groups, reduced, fitted.kept, scores)
        fitted = fit(denoiser, groups, of_all, options, progress=number / options.rounds)
    timed = {} if fitted.latency is None else {"latency": asdict(fitted.latency)}
    return Choice(fitted.kept, scores.criterion, {**scores.details, **timed})


def score(
    denoiser: ModelMixin, groups: Sequence[Group], calibration: Calibration | None, options: ScoringOptions,
    sums: Accumulator | None = None, *, name: str = "scores",
) -> Scores:  # fmt: skip
    """Return the scores of units within layers and of blocks, each by its criterion.

    sums: cache of the scores, under `name`.
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
            differentiable = _is_differentiable(denoiser, calibration, options)
        whole = denoiser if differentiable else cast(ModelMixin, cast(Any, nn.Module).float(copy.deepcopy(denoiser)))
        with placed(whole, device, offloaded=offloaded):
            if units:
                checkpoints = checkpointed(whole) if options.gradient_checkpointing else nullcontext()
                with checkpoints, autocast_forward(options, whole, device):
                    criterion = partial(CRITERIA[options.criterion], whole, units, calibration, options)
                    parts.append(_cached(sums, f"{name}-units", criterion))
            if blocks:
                block_criterion = partial(BLOCK_CRITERIA[options.block_criterion], whole, blocks, calibration, options)
                parts.append(_cached(sums, f"{name}-blocks", block_criterion))
    values = {group: value for part in parts for group, value in part.values.items()}
    values |= with_fixed(denoiser, {g.name: values[g.name] for g in blocks})
    details = {fact: value for part in parts for fact, value in part.details.items()}
    return Scores(" and ".join(dict.fromkeys(part.criterion for part in parts)), values, details)


def _cached(sums: Accumulator, name: str, criterion: Callable[[Accumulator], Scores]) -> Scores:
    """Return the scores of a criterion, from the cache if it holds them."""

    def work(partial_sums: Accumulator) -> CacheEntry:
        scores = criterion(partial_sums)
        return dict(scores.values), {"criterion": scores.criterion, "details": dict(scores.details)}

    values, facts = sums.cached(name, work)
    return Scores(facts["criterion"], values, facts["details"])


@torch.no_grad()
def _is_differentiable(denoiser: ModelMixin, calibration: Calibration, options: ScoringOptions) -> bool:
    """Return whether gradients are computed in the stored dtype; otherwise an fp32 copy is scored.

    fp16 has no range for gradients, and CPUs compute it slowly. bf16 has the range of fp32; sums, which need more
    digits, are fp32. Some classes mix fp32 values into bf16 layers, which raises: one forward pass shows that.
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


def _of_all(
    groups: Sequence[Group], reduced: Mapping[str, Group], kept: Mapping[str, Sequence[int]], scores: Scores
) -> Scores:
    """Return the scores of the units of all groups: from `scores` for `reduced`, `REMOVED` for removed units."""
    values = {}
    for group in groups:
        values[group.name] = torch.full((group.num_units,), REMOVED, dtype=torch.float64)
        if group.name in reduced:
            values[group.name][list(kept[group.name])] = scores.values[reduced[group.name].name]
        elif kept[group.name]:  # the layers of the group are in removed blocks
            values[group.name][list(kept[group.name])] = 0.0
    return Scores(scores.criterion, values, scores.details)
