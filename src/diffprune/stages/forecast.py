"""`run --dry-run`: what a recipe would read, download, write, cost and take, with all mistakes at once."""

import copy
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from diffprune.criteria.gradients import scored_timesteps
from diffprune.data.calibration import GENERATED, draw_images_of, images_for
from diffprune.errors import DiffpruneError, OptionError
from diffprune.models.cost import cost_of
from diffprune.models.families import family_of
from diffprune.models.loading import denoiser_of, is_hub_id, load_model, pick_device
from diffprune.models.process import DiffusionProcess, process_of
from diffprune.options import UNCALIBRATED_CRITERIA, BudgetOptions, ImageOptions, PlanOptions
from diffprune.recipes import Recipe
from diffprune.records import RECORD_NAME, read_json
from diffprune.stages.plan import make_plan
from diffprune.stages.train import untrained
from diffprune.surgery import prune_denoiser

TIMED_PASSES = 3
DEFAULT_TIMESTEPS = 1000


@dataclass(frozen=True)
class Timing:
    """Seconds per image of a denoiser: of a forward pass, and of a forward and backward pass."""

    forward_s: float
    training_s: float


def forecast(recipe: Recipe, out: Path) -> dict[str, Any]:
    """Check everything a recipe needs and tell, stage by stage, what would happen; nothing is written.

    Times are estimated from a few timed passes on this machine; scores count as if no threshold ended them.
    Raises OptionError that lists every mistake: a model or data that cannot be read, a plan that cannot be made.
    """
    mistakes: list[str] = []
    denoiser, process = _attempt(mistakes, "model", lambda: _model(recipe)) or (None, None)
    small = None
    if denoiser is not None and process is not None:
        for name, source in _sources(recipe).items():
            if not is_hub_id(source):
                _attempt(mistakes, name, functools.partial(_one_image, process, source, recipe.section(name)))
        if recipe.plan is not None:
            small = _attempt(mistakes, "plan", lambda: _pruned(denoiser, recipe.section("plan")))
    if mistakes:
        raise OptionError("the recipe cannot be run:\n" + "\n".join(f"  {m}" for m in mistakes))
    num_timesteps = DEFAULT_TIMESTEPS if process is None else process.num_timesteps
    rows = _rows(recipe, out, denoiser, small, num_timesteps)
    total = sum(row["estimated_s"] or 0 for row in rows)
    downloads = [s for s in [recipe.model, *_sources(recipe).values()] if s is not None and is_hub_id(s)]
    figures = {} if denoiser is None or small is None else _sizes(denoiser, small)
    return {"steps": rows, **figures, "downloads": downloads, "estimated_total_s": round(total, 1)}


def _attempt(mistakes: list[str], name: str, check: Callable[[], Any]) -> Any:
    try:
        return check()
    except DiffpruneError as error:
        mistakes.append(f"{name}: {error}")
        return None


def _one_image(process: DiffusionProcess, source: str, options: ImageOptions) -> Tensor:
    return draw_images_of(images_for(process, source, options), 1, 0, on_corrupt=options.on_corrupt)


def _sources(recipe: Recipe) -> dict[str, str]:
    """Where images are read from: section -> DATA."""
    named = {name: recipe.section(name).data for name in ("train", "plan", "finetune") if getattr(recipe, name)}
    return {name: source for name, source in named.items() if source and source != GENERATED}


def _model(recipe: Recipe) -> tuple[ModelMixin | None, DiffusionProcess | None]:
    if recipe.train is not None:
        pipeline = untrained(recipe.train)
        return denoiser_of(pipeline), process_of(pipeline)
    if recipe.model is None or is_hub_id(recipe.model):
        return None, None
    loaded = load_model(recipe.model)
    return loaded.denoiser, None if loaded.pipeline is None else process_of(loaded.pipeline)


def _pruned(denoiser: ModelMixin, options: PlanOptions) -> ModelMixin:
    """A model of the size the plan would give, with fresh weights."""
    budget = options.model_dump(include=set(BudgetOptions.model_fields))
    plan = make_plan(denoiser, PlanOptions(**{**budget, "criterion": "random", "rounds": 1}))
    return prune_denoiser(denoiser, plan, reinit=True, seed=0)


def _sizes(before: ModelMixin, after: ModelMixin) -> dict[str, int]:
    old, new = cost_of(before), cost_of(after)
    return {
        "params_before": old.params,
        "params_after": new.params,
        "macs_before": old.macs,
        "macs_after": new.macs,
    }


def _rows(
    recipe: Recipe, out: Path, denoiser: ModelMixin | None, small: ModelMixin | None, num_timesteps: int
) -> list[dict[str, Any]]:
    """One row per stage: what it reads, where it writes, what is there already, seconds."""
    big_s = None if denoiser is None else _time(denoiser, recipe)
    small_s = None if small is None else _time(small, recipe)
    rows: list[dict[str, Any]] = []

    def add(stage: str, reads: str | None, place: Path, seconds: float | None) -> None:
        rows.append(
            {
                "stage": stage,
                "reads": reads,
                "writes": str(place),
                "there": _status(place),
                "estimated_s": None if seconds is None else round(seconds, 3),
            }
        )

    if recipe.classifier is not None:
        add("train-classifier", "digits", out / "classifier", None)
    original = recipe.model
    if recipe.train is not None:
        images = recipe.train.steps * recipe.train.batch_size
        seconds = None if big_s is None else images * big_s.training_s
        add("train", recipe.section("train").data, out / "trained", seconds)
        original = str(out / "trained")
    names = ["original"]
    for variant in (recipe.compare or (None,)) if recipe.plan is not None else ():
        place = out if variant is None else out / variant
        plan = recipe.section("plan") if variant is None else recipe.variant(variant)[0]
        seconds = None
        if big_s is not None:
            calibrated = plan.criterion not in UNCALIBRATED_CRITERIA
            passes = len(scored_timesteps(num_timesteps, plan)) if calibrated else 0
            seconds = passes * plan.num_calibration_images * plan.num_noises * big_s.training_s
        add("plan", plan.data, place / "plan", seconds)
        add("prune", original, place / "pruned", None)
        names.append("pruned" if variant is None else f"{variant}-pruned")
        if recipe.finetune is not None:
            tuning = recipe.section("finetune")
            seconds = None
            if big_s is not None and small_s is not None:
                per_image = small_s.training_s + (big_s.forward_s if tuning.distill else 0)
                seconds = tuning.steps * tuning.batch_size * per_image
            add("finetune", tuning.data, place / "recovered", seconds)
            names.append("recovered" if variant is None else f"{variant}-recovered")
    for name in names if recipe.sample is not None else ():
        assert recipe.sample is not None
        timing = big_s if name == "original" else small_s
        seconds = None if timing is None else recipe.sample.num * recipe.sample.steps * timing.forward_s
        add("sample", None, out / "samples" / name, seconds)
    if recipe.evaluate is not None:
        add("evaluate", recipe.reference or recipe.data, out / "metrics", None)
    return rows


def _time(denoiser: ModelMixin, recipe: Recipe) -> Timing:
    """Time passes of a few images on the recipe's device."""
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
    """What is at a stage's place already."""
    try:
        return str(read_json(place / RECORD_NAME).get("status", "damaged"))
    except FileNotFoundError:
        return "new"
    except (OSError, ValueError):
        return "damaged"
