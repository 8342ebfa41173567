"""Make a plan: score the units of a prepared model, choose the units to keep, and forecast the cost."""

from typing import TypeVar

from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from diffprune.artifact.shorten import Moves, moves, path_after
from diffprune.artifact.slicing import without_weights
from diffprune.compute.autocast import resolve_precision
from diffprune.compute.cost import cost_of
from diffprune.errors import ModelError, OptionError
from diffprune.groups import kept_blocks, remove_units
from diffprune.options import UNCALIBRATED_CRITERIA, PlanOptions
from diffprune.pipelines.denoiser_access import has_weights
from diffprune.planning.allocation import check_patterns
from diffprune.planning.plan import KeptUnits, Plan
from diffprune.planning.prepared import Prepared
from diffprune.planning.rounds import choose_units
from diffprune.planning.widths import resolve_round_to
from diffprune.runs.accumulator import Accumulator
from diffprune.runs.distributed import process_state

OptionsT = TypeVar("OptionsT", bound=PlanOptions)


def resolve_auto(options: OptionsT) -> OptionsT:
    """Return the options with `auto` resolved for the device: the precision and the multiples of widths."""
    return resolve_round_to(resolve_precision(options))


def make_plan(prepared: Prepared, options: PlanOptions, sums: Accumulator | None = None) -> Plan:
    """Choose the units to keep; the model is not changed. All ranks call this and return the same plan.

    Args:
        prepared: the model, with the kinds and the calibration of these options.
        options: with `auto` resolved.
        sums: cache of the sums of scores, so that an interrupted call resumes; None caches nothing.

    Raises:
        ModelError: an architecture without weights, for a criterion that needs weights.
        OptionError: no calibration data, a pattern that matches no layer, or a budget that cannot be met.
    """
    process_state(options.device)  # joins the process group, so that each rank has its own device
    options = _with_criterion(prepared.denoiser, options)
    denoiser, groups = prepared.denoiser, prepared.groups
    check_patterns(groups, options)
    calibration = prepared.calibration if options.is_calibrated else None
    chosen = choose_units(denoiser, groups, calibration, options, sums)
    small = remove_units(without_weights(denoiser), groups, chosen.kept)
    return Plan(
        class_name=type(denoiser).__name__,
        fingerprint=prepared.fingerprint,
        criterion=chosen.criterion,
        options=options.choice(),
        details={**chosen.details, **({} if has_weights(denoiser) else {"has_weights": False})},
        before=prepared.cost,
        after=cost_of(small),
        layers=_layer_sizes(denoiser, small, moves(denoiser, kept_blocks(groups, chosen.kept))),
        groups={g.name: KeptUnits(kind=g.kind, num_units=g.num_units, kept=chosen.kept[g.name]) for g in groups},
    )


def _with_criterion(denoiser: ModelMixin, options: PlanOptions) -> PlanOptions:
    """Return the options with their default criterion; raise where weights or calibration data are missing."""
    weights = has_weights(denoiser)
    options = options.model_copy(update={"criterion": options.criterion or ("diff-pruning" if weights else "random")})
    if not weights and options.criterion != "random":
        raise ModelError(
            f"criterion {options.criterion!r} needs weights, but this is an architecture without weights; "
            "leave out the criterion to forecast the cost, or give a pretrained model"
        )
    if options.is_calibrated and options.data is None:
        of_units = options.criterion not in UNCALIBRATED_CRITERIA
        raise OptionError(
            f"{f'criterion {options.criterion!r}' if of_units else 'the score of blocks'} needs calibration images: "
            "give data (a folder, a parquet file, a dataset id, `digits`, or `generated` by the model itself), "
            "or choose criterion magnitude or random"
        )
    return options


def _layer_sizes(before: ModelMixin, after: ModelMixin, moved: Moves) -> dict[str, tuple[int, int]]:
    """Return the parameters of each layer before and after; 0 after for the layers of removed blocks."""
    sizes = {path: _own_params(module) for path, module in before.named_modules()}
    remaining = {path: _own_params(module) for path, module in after.named_modules()}
    return {path: (size, remaining.get(path_after(path, moved) or "", 0)) for path, size in sizes.items() if size}


def _own_params(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters(recurse=False))
