"""Stage `plan`: score the units of a model and choose which stay."""

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import nn

from diffprune.artifact.preconditions import check_sound
from diffprune.artifact.shorten import Moves, moves, path_after
from diffprune.artifact.slicing import without_weights
from diffprune.calibration.calibration_set import (
    GENERATED,
    Calibration,
    calibrate,
    draw_calibration_images,
    generate_images,
    images_for,
)
from diffprune.calibration.latent_cache import LATENTS, LatentCache
from diffprune.calibration.text_latents import calibrate_on_texts
from diffprune.compute.autocast import resolve_precision
from diffprune.compute.cost import cost_of
from diffprune.compute.device import pick_device
from diffprune.errors import FolderError, ModelError, OptionError
from diffprune.groups import Group, find_groups, kept_blocks, remove_units
from diffprune.options import UNCALIBRATED_CRITERIA, CalibrationOptions, PlanOptions, ScoringOptions
from diffprune.pipelines.denoiser_access import denoiser_of, has_weights
from diffprune.pipelines.diffusion import process_of
from diffprune.pipelines.prompts import files_of
from diffprune.pipelines.stored_dtype import load_as_stored
from diffprune.planning import Plan, check_patterns, choose_units, fingerprint, read_plan
from diffprune.planning.plan import KeptUnits
from diffprune.planning.widths import resolve_round_to
from diffprune.runs.accumulator import Accumulator
from diffprune.runs.atomic_files import check_replaceable, remove_partials_of
from diffprune.runs.distributed import on_main_process, process_state, shared_run
from diffprune.runs.run_record import Existing, identity
from diffprune.runs.tensor_cache import partial_folder

Model = DiffusionPipeline | ModelMixin
Set = TypeVar("Set", bound=PlanOptions)

SUMS = "sums"
"""Folder of the sums of scores below the stage's own; it goes when the stage has finished."""


def make_plan(
    model: Model, options: PlanOptions, store: LatentCache | None = None, sums: Accumulator | None = None
) -> Plan:
    """`plan` with its options as one value; several processes share the scores, and all have to call this.

    store, sums: where latents of a text-conditioned model and sums of scores are kept meanwhile, for the next call.
    """
    return plan_and_calibration(model, options, store, sums)[0]


def plan_and_calibration(
    model: Model, options: PlanOptions, store: LatentCache | None = None, sums: Accumulator | None = None
) -> tuple[Plan, Calibration | None]:
    """As `make_plan`, and what the model was scored on; None where the criterion needs no images."""
    process_state(options.device)  # joins the others, so that each has a device of its own
    denoiser = denoiser_of(model)
    check_sound(denoiser)
    options = resolve_auto_options(options)
    criterion = options.criterion or ("diff-pruning" if has_weights(denoiser) else "random")
    if not has_weights(denoiser) and criterion != "random":
        raise ModelError(
            f"criterion {criterion!r} needs weights, this is an architecture alone; "
            "leave the criterion out for a forecast of the sizes, or give a pretrained model"
        )
    calibrated = criterion not in UNCALIBRATED_CRITERIA or ("blocks" in (options.kinds or ()) and criterion != "random")
    if calibrated and options.data is None:
        raise OptionError(
            f"{'criterion ' + repr(criterion) if criterion not in UNCALIBRATED_CRITERIA else 'the score of blocks'} "
            "needs calibration images: give data (a folder, a parquet file, a dataset id "
            "`digits`, or `generated` by the model itself), or choose criterion magnitude or random"
        )
    options = options.model_copy(update={"criterion": criterion})
    groups = find_groups(denoiser, kinds=options.kinds)
    check_patterns(groups, options)
    calibration = calibration_of(model, denoiser, options, store) if calibrated else None
    chosen = choose_units(denoiser, groups, calibration, options, sums)
    kept = chosen.kept
    small = remove_units(without_weights(denoiser), groups, kept)
    made = Plan(
        class_name=type(denoiser).__name__,
        fingerprint=fingerprint(denoiser),
        criterion=chosen.criterion,
        options=options.choice(),
        details=chosen.details,
        before=cost_of(denoiser),
        after=cost_of(small),
        layers=_layer_sizes(denoiser, small, moves(denoiser, kept_blocks(groups, kept))),
        groups={g.name: _units(g, kept[g.name]) for g in groups},
    )
    return made, calibration


def plan_stage(source: str, options: PlanOptions, out: Path | None, *, existing: Existing = "refuse") -> dict[str, Any]:
    """Plan MODEL; with `out`, write it to that .json file, or as plan.json with run.json into that folder."""
    options = resolve_auto_options(options)
    inputs = {"model": source, "data": options.data, **files_of(options.prompts)}
    if out is None:
        return make_plan(_loaded(source), options).summary()
    if out.suffix == ".json":
        return _plan_to_file(source, options, out, inputs, existing)
    device = options.device
    with shared_run(
        out, "plan", options.resolved(), inputs, device=device, existing=existing, neutral=options.neutral
    ) as run:
        if not run.finished_before:
            store, sums = stage_caches(run.folder, inputs, options)
            made = make_plan(_loaded(source), options, store, sums)
            on_main_process(partial(made.save, run.folder / "plan.json"), device)
            on_main_process(partial(remove_caches, run.folder), device)
            run.result = made.summary()
        return run.result


def resolve_auto_options(options: Set) -> Set:
    """The options as they are recorded: what `auto` leaves to the device is told."""
    return resolve_round_to(resolve_precision(options))


def stage_caches(
    folder: Path, inputs: Mapping[str, str | None], options: ScoringOptions
) -> tuple[LatentCache, Accumulator]:
    """What a stage keeps in a folder while it works: latents and sums of scores. inputs: what it reads."""
    store = latent_cache_in(folder, inputs)
    return store, Accumulator(options.device, folder / SUMS, {**store.made_from, "options": options.decisive()})


def latent_cache_in(folder: Path, inputs: Mapping[str, str | None]) -> LatentCache:
    """Where a stage keeps latents while it works on its folder. inputs: what it reads."""
    return LatentCache(folder / LATENTS, {name: [given, identity(given)] for name, given in inputs.items()})


def remove_caches(folder: Path) -> None:
    """Remove what a stage has kept."""
    for name in (LATENTS, SUMS):
        shutil.rmtree(folder / name, ignore_errors=True)


def _plan_to_file(
    source: str, options: PlanOptions, out: Path, inputs: dict[str, str | None], existing: Existing
) -> dict[str, Any]:
    """A plan in a file of its own: kept where it was made from the same, refused where it was not."""
    there = on_main_process(partial(_plan_there, out, existing), options.device)
    made_from = {name: identity(given) for name, given in inputs.items()}
    model = _loaded(source)
    if there is None:
        on_main_process(partial(remove_partials_of, out), options.device)
        made = make_plan(model, options, *stage_caches(partial_folder(out), inputs, options))
        there = made.model_copy(update={"details": {**made.details, "made_from": made_from}})
        on_main_process(partial(there.save, out), options.device)
    else:
        asked = {**options.choice(), "criterion": options.criterion or there.criterion}
        same = there.options == asked and there.details.get("made_from") == made_from
        if not same or there.fingerprint != fingerprint(denoiser_of(model)):
            raise FolderError(
                f"{out} holds a plan made otherwise; add --overwrite to replace it, or choose another --out"
            )
    on_main_process(partial(shutil.rmtree, partial_folder(out), ignore_errors=True), options.device)
    return there.summary()


def _plan_there(out: Path, existing: Existing) -> Plan | None:
    """The plan that is to be kept or refused; None where there is none, or it is to be replaced."""
    check_replaceable(out, '"fingerprint"')
    return read_plan(out) if out.exists() and existing == "refuse" else None


def _loaded(source: str) -> Model:
    return load_as_stored(source).whole


def calibration_of(
    model: Model,
    denoiser: ModelMixin,
    options: CalibrationOptions,
    store: LatentCache | None = None,
    *,
    fewer_will_do: bool = False,
) -> Calibration:
    """Images and noises that a model is scored on; raises OptionError, ModelError or DataError where there are none.

    fewer_will_do: take all images where there are fewer than `num_calibration_images`.
    """
    if options.data is None:
        raise OptionError("data: missing; give a folder, a parquet file, a dataset id, `digits`, or `generated`")
    process, device = process_of(model), pick_device(options.device)
    if process.pipeline is not None:
        return calibrate_on_texts(process, options, device, store)
    if options.data == GENERATED:
        images = generate_images(denoiser, process, options, device)
    else:
        found = images_for(process, options.data, options)
        num = min(options.num_calibration_images, len(found) if fewer_will_do else options.num_calibration_images)
        images = draw_calibration_images(found, num, options.seed, on_corrupt=options.on_corrupt)
    return calibrate(images, process, options, device)


def _layer_sizes(before: ModelMixin, after: ModelMixin, moved: Moves) -> dict[str, tuple[int, int]]:
    """Parameters of each layer before and after; 0 after where its block is gone."""
    sizes = {path: _own_params(module) for path, module in before.named_modules()}
    left = {path: _own_params(module) for path, module in after.named_modules()}
    return {path: (size, left.get(path_after(path, moved) or "", 0)) for path, size in sizes.items() if size}


def _own_params(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters(recurse=False))


def _units(group: Group, kept: tuple[int, ...]) -> KeptUnits:
    return KeptUnits(kind=group.kind, num_units=group.num_units, kept=kept)
