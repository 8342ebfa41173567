"""Command `run --dry-run`: forecast the inputs, outputs, downloads and duration of each stage of a recipe."""

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from diffprune.architectures.families import family_of
from diffprune.compute.autocast import autocast_forward
from diffprune.compute.cost import cost_of
from diffprune.compute.device import pick_device
from diffprune.criteria.score_pass import scored_timesteps
from diffprune.options import UNCALIBRATED_CRITERIA, SampleOptions
from diffprune.options.recipe import METRIC_KINDS, Recipe
from diffprune.recipes.recipe_checks import CheckedRecipe, check_recipe, weights_of_metrics
from diffprune.recipes.run_recipe import REFERENCE, makes_statistics, metrics_folders
from diffprune.runs.atomic_files import read_json
from diffprune.runs.run_record import RECORD_NAME
from diffprune.sampling.image_folder import num_evaluations

TIMED_PASSES = 3
DEFAULT_TIMESTEPS = 1000


@dataclass(frozen=True)
class Timing:
    """Seconds per image of a forward pass, and of a forward and backward pass."""

    forward_s: float
    training_s: float


def forecast(recipe: Recipe, out: Path) -> dict[str, Any]:
    """Check a recipe and return one row per stage, without writing anything.

    Durations are estimated from a few timed passes on this machine. Scores are estimated for all timesteps, without
    an early stop.
    Raises OptionError that lists every mistake, as `run` does.
    """
    checked = check_recipe(recipe, fetch=False)
    rows = _rows(recipe, out, checked)
    total = sum(row["estimated_s"] or 0 for row in rows)
    figures = {} if checked.denoiser is None or checked.small is None else _sizes(checked.denoiser, checked.small)
    return {"steps": rows, **figures, "downloads": list(checked.downloads), "estimated_total_s": round(total, 1)}


def _sizes(before: ModelMixin, after: ModelMixin) -> dict[str, int]:
    old, new = cost_of(before), cost_of(after)
    return {
        "params_before": old.params,
        "params_after": new.params,
        "macs_before": old.macs,
        "macs_after": new.macs,
    }


def _rows(recipe: Recipe, out: Path, checked: CheckedRecipe) -> list[dict[str, Any]]:
    """Return one row per stage: its inputs, its output, the status of the output, and the estimated seconds."""
    big_s = None if checked.denoiser is None else _time(checked.denoiser, recipe)
    small_s = None if checked.small is None else _time(checked.small, recipe)
    num_timesteps = DEFAULT_TIMESTEPS if checked.process is None else checked.process.num_timesteps
    rows: list[dict[str, Any]] = []

    def add(stage: str, reads: Sequence[str | None], output: Path, seconds: float | None, status: str = "") -> None:
        rows.append(
            {
                "stage": stage,
                "reads": ", ".join(source for source in reads if source) or None,
                "writes": str(output),
                "status": status or _status(output),
                "estimated_s": None if seconds is None else round(seconds, 3),
            }
        )

    weights = [] if recipe.evaluate is None else list(weights_of_metrics(recipe.evaluate))
    if recipe.classifier is not None:
        add("train-classifier", ["digits"], out / "classifier", None)
    if makes_statistics(recipe):
        status = "finished" if (out / REFERENCE).is_file() else "new"
        add("stats", [recipe.judged_by, *weights[:1]], out / REFERENCE, None, status)
    models = {"original": recipe.model or str(out / "trained")}
    if recipe.train is not None:
        images = recipe.train.steps * recipe.train.batch_size
        seconds = None if big_s is None else images * big_s.training_s
        add("train", [recipe.section("train").data], out / "trained", seconds)
    for variant in (recipe.compare or (None,)) if recipe.plan is not None else ():
        place = out if variant is None else out / variant
        prefix = "" if variant is None else f"{variant}-"
        plan = recipe.section("plan") if variant is None else recipe.variant(variant)[0]
        seconds = None
        if big_s is not None:
            calibrated = plan.criterion not in UNCALIBRATED_CRITERIA
            passes = len(scored_timesteps(num_timesteps, plan)) if calibrated else 0
            seconds = passes * plan.num_calibration_images * plan.num_noises * big_s.training_s
        add("plan", [models["original"], plan.data], place / "plan", seconds)
        add("prune", [models["original"], str(place / "plan")], place / "pruned", None)
        models[f"{prefix}pruned"] = str(place / "pruned")
        if recipe.finetune is not None:
            tuning = recipe.section("finetune")
            seconds = None
            if big_s is not None and small_s is not None:
                per_image = small_s.training_s + (big_s.forward_s if tuning.distill else 0)
                seconds = tuning.steps * tuning.batch_size * per_image
            teacher = models["original"] if tuning.distill else None
            add("finetune", [str(place / "pruned"), teacher, tuning.data], place / "recovered", seconds)
            models[f"{prefix}recovered"] = str(place / "recovered")
    for name, model in models.items() if recipe.sample is not None else ():
        assert recipe.sample is not None
        timing = big_s if name == "original" else small_s
        seconds = None if timing is None else _passes(recipe.sample, checked) * timing.forward_s
        add("sample", [model], out / "samples" / name, seconds)
    if recipe.evaluate is not None:
        of_sets = {
            "statistics": str(out / REFERENCE) if makes_statistics(recipe) else recipe.judged_by,
            "sets": recipe.judged_by,
        }
        references = [of_sets[kind] for kind in METRIC_KINDS if kind in of_sets and recipe.metrics(kind)]
        known = {_status(folder) for folder in metrics_folders(recipe, list(models), out)}
        status = known.pop() if len(known) == 1 else "running"
        reads = dict.fromkeys([str(out / "samples"), *references, *weights])
        add("evaluate", list(reads), out / "metrics", None, status)
    return rows


def _passes(options: SampleOptions, checked: CheckedRecipe) -> int:
    """Return the number of forward passes for all images; guidance needs two per step."""
    steps = options.steps if checked.process is None else num_evaluations(checked.process, options)
    return options.num_images * steps * (1 + options.is_guided)


def _time(denoiser: ModelMixin, recipe: Recipe) -> Timing:
    """Time passes of a few images, on the device and in the precision of the first section of the recipe."""
    sections = [s for s in (recipe.train, recipe.finetune, recipe.plan, recipe.sample) if s is not None]
    device = pick_device(sections[0].device if sections else "auto")
    model = cast(nn.Module, copy.deepcopy(denoiser)).to(device).train()
    num = min([8, *(s.batch_size for s in sections)])
    inputs = family_of(model).example_inputs(model, num, device)

    def forward() -> Tensor:
        output: Tensor = model(**inputs, return_dict=False)[0]
        return output

    def both() -> None:
        forward().float().square().mean().backward()
        model.zero_grad()

    with autocast_forward(sections[0], model, device) if sections else nullcontext():
        with torch.no_grad():
            forward_s = _seconds(forward, device)
        training_s = _seconds(both, device)
    return Timing(forward_s / num, training_s / num)


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    run()
    times = []
    for _ in range(TIMED_PASSES):
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return sorted(times)[TIMED_PASSES // 2]


def _status(place: Path) -> str:
    """Return the status in the run.json of a folder; `new` without a run.json, `damaged` if it cannot be read."""
    try:
        return str(read_json(place / RECORD_NAME).get("status", "damaged"))
    except FileNotFoundError:
        return "new"
    except (OSError, ValueError):
        return "damaged"
