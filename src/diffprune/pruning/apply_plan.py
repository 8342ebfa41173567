"""Apply a plan to a prepared model: remove units, and compensate the kept weights on calibration images."""

from functools import partial
from pathlib import Path
from typing import Any

from diffprune.artifact.pruned_classes import PrunedMixin
from diffprune.errors import OptionError
from diffprune.options import CalibrationOptions, PruneOptions, RunOptions
from diffprune.pipelines.denoiser_access import with_denoiser
from diffprune.planning import Plan, Prepared
from diffprune.pruning.compensation import Compensation, compensate
from diffprune.pruning.surgery import prune_denoiser


def apply_plan(
    prepared: Prepared, plan: Plan, options: PruneOptions, folder: Path | None = None
) -> tuple[Any, Compensation | None]:
    """Return a pruned copy of the model, and the statistics of its compensation; the model is not changed.

    Args:
        prepared: the model, with the kinds of the plan and the calibration set of the compensation.
        plan: the units to keep.
        options: with `auto` resolved.
        folder: cache of compensated layers, so that an interrupted call resumes; None caches nothing.

    Returns:
        The pipeline or bare denoiser, and the statistics; None instead of statistics without compensation.

    Raises:
        PlanError: the plan is for another model.
        OptionError: compensation is requested and not possible.
    """
    dense = prepared.denoiser
    cut = partial(
        prune_denoiser, prepared, plan,
        reinit=options.reinit, rescale_queries=options.rescale_queries, seed=options.seed,
    )  # fmt: skip
    wanted = is_compensated(options, prepared.calibrating, is_bare=prepared.is_bare)
    calibration = prepared.calibration if wanted else None
    small, statistics = cut(), None
    if calibration is not None:
        statistics = compensate(
            dense, small, plan, calibration, options, groups=prepared.groups,
            batch_size=options.batch_size, offloaded=options.offload == "cpu", folder=folder,
        )  # fmt: skip
        small = small if statistics.helped else cut()
        if isinstance(small, PrunedMixin):
            small.pruning_provenance[-1]["compensation"] = statistics.summary()
    return (small if prepared.is_bare else with_denoiser(prepared.model, small)), statistics


def is_compensated(options: PruneOptions, calibrating: CalibrationOptions | None, *, is_bare: bool = False) -> bool:
    """Return whether weights are compensated; raise OptionError if that is requested and not possible."""
    reason = None
    if options.reinit:
        reason = "not supported with reinit, which draws new weights; leave out one of the two"
    elif is_bare:
        reason = "not supported for a bare denoiser, which has no noise schedule; give a pipeline"
    elif calibrating is None or calibrating.data is None:
        reason = "needs images; give data (a folder, a parquet file, a dataset id, `digits` or `generated`)"
    if reason is not None and options.compensate and "compensate" in options.model_fields_set:
        raise OptionError(f"compensate: {reason}")
    return options.compensate and reason is None


def calibrating_of(plan: Plan, options: PruneOptions) -> CalibrationOptions:
    """Return the calibration options of a compensation: from the plan, with data and run options from `prune`."""
    chosen = {name: value for name, value in plan.options.items() if name in CalibrationOptions.model_fields}
    run = options.model_dump(include={*RunOptions.model_fields})
    data = {} if options.data is None else {"data": options.data}
    return CalibrationOptions.model_validate({**chosen, **run, **data})
