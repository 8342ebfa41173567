"""Stage `plan`: score the units of a model and choose which stay."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import nn

from diffprune.data.calibration import (
    GENERATED,
    Calibration,
    calibrate,
    draw_images_of,
    images_for,
    own_images,
)
from diffprune.data.conditioned import calibrate_on_texts
from diffprune.data.stored import LATENTS, Store
from diffprune.errors import FolderError, ModelError, OptionError
from diffprune.groups import Group, find_groups, kept_blocks, smaller
from diffprune.models.cost import cost_of
from diffprune.models.depth import Moves, moves, path_after
from diffprune.models.loading import denoiser_of, has_weights, pick_device
from diffprune.models.precision import load_as_stored
from diffprune.models.process import process_of
from diffprune.models.resize import without_weights
from diffprune.models.soundness import check_sound
from diffprune.options import UNCALIBRATED_CRITERIA, PlanOptions
from diffprune.planning import Plan, check_patterns, choose_units, fingerprint, read_plan
from diffprune.planning.plan import KeptUnits
from diffprune.records import Existing, check_replaceable, identity, run_record
from diffprune.stages.calls import with_options

Model = DiffusionPipeline | ModelMixin


@with_options(PlanOptions)
def plan(model: Model, options: PlanOptions) -> Plan:
    """Choose which units of a model to keep; nothing is changed.

    model: a pipeline, or a bare denoiser (for criteria that need no images; its parameters may be on the meta
    device, then the plan is a forecast of sizes with random choice).
    Raises OptionError, ModelError or DataError before any work when something is wrong or missing.
    """
    return make_plan(model, options)


def make_plan(model: Model, options: PlanOptions, store: Store | None = None) -> Plan:
    """`plan` with its options as one value. store: where latents of a text-conditioned model are kept meanwhile."""
    denoiser = denoiser_of(model)
    check_sound(denoiser)
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
    chosen = choose_units(denoiser, groups, calibration, options)
    kept = chosen.kept
    small = smaller(without_weights(denoiser), groups, kept)
    return Plan(
        class_name=type(denoiser).__name__,
        fingerprint=fingerprint(denoiser),
        criterion=chosen.criterion,
        options=options.resolved(),
        details=chosen.details,
        before=cost_of(denoiser),
        after=cost_of(small),
        layers=_layer_sizes(denoiser, small, moves(denoiser, kept_blocks(groups, kept))),
        groups={g.name: _units(g, kept[g.name]) for g in groups},
    )


def plan_stage(source: str, options: PlanOptions, out: Path | None, *, existing: Existing = "refuse") -> dict[str, Any]:
    """Plan MODEL; with `out`, write it to that .json file, or as plan.json with run.json into that folder."""
    inputs = {"model": source, "data": options.data, **options.files()}
    if out is None:
        return make_plan(_loaded(source), options).summary()
    if out.suffix == ".json":
        return _plan_to_file(source, options, out, inputs, existing)
    with run_record(
        out, "plan", options.resolved(), inputs, existing=existing, neutral=options.neutral, resumable=True
    ) as run:
        if not run.finished_before:
            store = store_in(run.folder, inputs)
            made = make_plan(_loaded(source), options, store)
            made.save(run.folder / "plan.json")
            shutil.rmtree(store.folder, ignore_errors=True)
            run.result = made.summary()
        return run.result


def store_in(folder: Path, inputs: Mapping[str, str | None]) -> Store:
    """Where a stage keeps latents while it works on its folder. inputs: what it reads."""
    return Store(folder / LATENTS, {name: [given, identity(given)] for name, given in inputs.items()})


def _plan_to_file(
    source: str, options: PlanOptions, out: Path, inputs: dict[str, str | None], existing: Existing
) -> dict[str, Any]:
    """A plan in a file of its own: kept where it was made from the same, refused where it was not."""
    check_replaceable(out, '"fingerprint"')
    made_from = {name: identity(given) for name, given in inputs.items()}
    model = _loaded(source)
    if out.exists() and existing == "refuse":
        there = read_plan(out)
        asked = {**options.resolved(), "criterion": options.criterion or there.criterion}
        same = there.options == asked and there.details.get("made_from") == made_from
        if not same or there.fingerprint != fingerprint(denoiser_of(model)):
            raise FolderError(
                f"{out} holds a plan made otherwise; add --overwrite to replace it, or choose another --out"
            )
        return there.summary()
    made = make_plan(model, options)
    made = made.model_copy(update={"details": {**made.details, "made_from": made_from}})
    made.save(out)
    return made.summary()


def _loaded(source: str) -> Model:
    return load_as_stored(source).whole


def calibration_of(
    model: Model,
    denoiser: ModelMixin,
    options: PlanOptions,
    store: Store | None = None,
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
        images = own_images(denoiser, process, options, device)
    else:
        found = images_for(process, options.data, options)
        num = min(options.num_calibration_images, len(found) if fewer_will_do else options.num_calibration_images)
        images = draw_images_of(found, num, options.seed, on_corrupt=options.on_corrupt)
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
