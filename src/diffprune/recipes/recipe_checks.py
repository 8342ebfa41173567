"""Check the model, data and options of a recipe before any work, and list all mistakes at once."""

import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin

from diffprune.calibration.calibration_set import GENERATED, draw_calibration_images, images_for
from diffprune.calibration.texts import open_texts
from diffprune.data.images import open_rows
from diffprune.errors import DataError, DiffpruneError, ModelError, OptionError
from diffprune.evaluation.inception import URL
from diffprune.evaluation.inception_evaluation import INCEPTION_METRICS, check_network, check_reference
from diffprune.evaluation.lpips import BACKBONES, load_lpips
from diffprune.evaluation.minimum_images import check_num_images
from diffprune.options import (
    UNCALIBRATED_CRITERIA,
    BudgetOptions,
    EvaluateOptions,
    FinetuneOptions,
    ImageOptions,
    PlanOptions,
    TrainingOptions,
)
from diffprune.options.recipe import Recipe
from diffprune.pipelines.denoiser_access import denoiser_of
from diffprune.pipelines.diffusion import DiffusionProcess, process_of
from diffprune.pipelines.loading import load_model
from diffprune.pipelines.model_source import is_hub_id
from diffprune.pipelines.prompts import read_prompts
from diffprune.planning import make_plan, prepare, resolve_auto
from diffprune.pruning.surgery import prune_denoiser
from diffprune.sampling.image_folder import num_evaluations
from diffprune.training.batches import check_conditions
from diffprune.training.draws import shards_of
from diffprune.training.fsdp import check_sharding
from diffprune.training.training_data import open_training_data
from diffprune.training.untrained_pipeline import untrained_pipeline


@dataclass(frozen=True)
class CheckedRecipe:
    """Results of the checks.

    Attributes:
        denoiser: the denoiser before pruning; None if it is not downloaded.
        process: its diffusion process; None without a downloaded pipeline.
        small: a denoiser of the planned size, with new weights; None without a plan or a denoiser.
        downloads: hub ids and URLs that are not local files. A hub id that is already cached is listed too.
    """

    denoiser: ModelMixin | None
    process: DiffusionProcess | None
    small: ModelMixin | None
    downloads: tuple[str, ...]


def check_recipe(recipe: Recipe, *, fetch: bool) -> CheckedRecipe:
    """Check everything that a recipe reads, and return the results of the checks.

    fetch: download a model with a hub id, to check the recipe against it; False only lists the hub id.
    Raises OptionError that lists every mistake: an unreadable model or data, a budget that cannot be met, steps or
    classes that the model does not have, a reference or weights that do not match the metrics.
    """
    mistakes: list[str] = []
    attempt = functools.partial(_attempt, mistakes)
    denoiser, process = attempt("model", lambda: _model(recipe, fetch)) or (None, None)
    if process is not None and process.pipeline is not None:
        for name in ("plan", "finetune"):
            if getattr(recipe, name) is not None:
                attempt(name, functools.partial(_check_texts, process, recipe.section(name)))
    else:
        for name, source in image_sources(recipe).items():
            if not is_hub_id(source):
                attempt(name, functools.partial(_check_images, process, source, recipe.section(name)))
    for name in ("train", "finetune"):
        if (section := getattr(recipe, name)) is not None:
            num_processes = int(os.environ.get("WORLD_SIZE", "1"))
            attempt(name, functools.partial(shards_of, section, num_processes, 0))
            attempt(name, functools.partial(check_sharding, section))
    small = None
    if denoiser is not None and recipe.plan is not None:
        small = attempt("plan", lambda: _pruned(denoiser, recipe.section("plan")))
    if process is not None and recipe.sample is not None:
        attempt("sample", functools.partial(num_evaluations, process, recipe.sample))
    for check in _checks_of_evaluation(recipe):
        attempt("evaluate", check)
    if mistakes:
        raise OptionError("the recipe cannot be run:\n" + "\n".join(f"  {m}" for m in dict.fromkeys(mistakes)))
    return CheckedRecipe(denoiser, process, small, tuple(dict.fromkeys(_downloads(recipe))))


def image_sources(recipe: Recipe) -> dict[str, str]:
    """Return the DATA of each section that reads images."""
    named = {name: recipe.section(name).data for name in ("train", "plan", "finetune") if getattr(recipe, name)}
    return {name: source for name, source in named.items() if source and source != GENERATED}


def weights_of_metrics(options: EvaluateOptions) -> Iterator[str]:
    """Yield the file or URL of each network that the metrics use."""
    if set(options.metrics) & set(INCEPTION_METRICS):
        yield _file_or_url(options.inception_weights, URL)
    if "lpips" in options.metrics:
        yield _file_or_url(options.lpips_weights, BACKBONES[options.lpips_network][1].url)
    if "clip_score" in options.metrics:
        yield options.clip_model


def _file_or_url(weights: Path | None, url: str) -> str:
    """Return the weights file, by default the cached file of torch.hub; the URL if nothing is cached."""
    path = weights or Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    return str(path) if weights or path.is_file() else url


def _downloads(recipe: Recipe) -> Iterator[str]:
    sources = [recipe.model, *image_sources(recipe).values()]
    if recipe.evaluate is not None:
        of_sets = recipe.metrics("statistics") + recipe.metrics("sets")
        sources += [recipe.judged_by if of_sets else None, *weights_of_metrics(recipe.evaluate)]
    for source in sources:
        if source is not None and (is_hub_id(source) or source.startswith("https://")):
            yield source


def _attempt(mistakes: list[str], name: str, check: Callable[[], Any]) -> Any:
    """Return the result of a check; if it fails, add its message to `mistakes` and return None."""
    try:
        return check()
    except DiffpruneError as error:
        mistakes.append(f"{name}: {error}")
        return None


def _model(recipe: Recipe, fetch: bool) -> tuple[ModelMixin | None, DiffusionProcess | None]:
    if recipe.train is not None:
        pipeline = untrained_pipeline(recipe.train)
        return denoiser_of(pipeline), process_of(pipeline)
    if recipe.model is None or (is_hub_id(recipe.model) and not fetch):
        return None, None
    loaded = load_model(recipe.model)
    if loaded.pipeline is None and (recipe.finetune is not None or recipe.sample is not None):
        raise ModelError(
            f"{recipe.model} is a bare denoiser; finetune and sample need the noise schedule of a pipeline; "
            "give a pipeline"
        )
    return loaded.denoiser, None if loaded.pipeline is None else process_of(loaded.pipeline)


def _check_images(process: DiffusionProcess | None, source: str, options: ImageOptions) -> None:
    """Raise DataError for too few images; with a process, also read and preprocess one image."""
    num = len(open_rows(source))
    needed = 1
    if isinstance(options, PlanOptions) and options.criterion not in UNCALIBRATED_CRITERIA:
        needed = options.num_calibration_images
    if num < needed:
        raise DataError(
            f"{source} holds {num} images, but calibration needs {needed}; give more images or set "
            f"num_calibration_images to at most {num}"
        )
    if process is not None:
        images = images_for(process, source, options)
        draw_calibration_images(images, 1, 0, on_corrupt=options.on_corrupt)
        if isinstance(options, TrainingOptions):
            check_conditions(process, images, options)


def _check_texts(process: DiffusionProcess, options: PlanOptions | FinetuneOptions) -> None:
    """Check the texts and images for scoring or finetuning of a text-conditioned model."""
    if options.data is None or is_hub_id(options.data):
        return
    if isinstance(options, FinetuneOptions):
        open_training_data(process, options)
    elif options.criterion not in UNCALIBRATED_CRITERIA:
        open_texts(process, options, options.num_calibration_images)


def _pruned(denoiser: ModelMixin, options: PlanOptions) -> ModelMixin:
    """Return a denoiser of the planned size, with new weights."""
    budget = options.model_dump(include={*BudgetOptions.model_fields, "device"})
    prepared = prepare(denoiser, options.kinds)
    plan = make_plan(prepared, resolve_auto(PlanOptions(**{**budget, "criterion": "random", "rounds": 1})))
    return prune_denoiser(prepared, plan, reinit=True, seed=0)


def _checks_of_evaluation(recipe: Recipe) -> Iterator[Callable[[], Any]]:
    options, sample = recipe.evaluate, recipe.sample
    if options is None or sample is None:
        return
    drawn = sample.num_images
    num = options.num or drawn
    if num > drawn:
        yield functools.partial(_too_few, num, drawn)
    yield functools.partial(check_num_images, "the sample section", num, options.metrics, options, reference=False)
    reference = recipe.judged_by
    by_network = set(options.metrics) & set(INCEPTION_METRICS)
    network = bool(by_network) and next(weights_of_metrics(options)) != URL
    if network:
        yield functools.partial(check_network, options)
    for metrics in (recipe.metrics("statistics"), recipe.metrics("sets")):
        if metrics and reference is not None and not is_hub_id(reference):
            of_network = network and bool(by_network & set(metrics))
            yield functools.partial(check_reference, reference, metrics, options, with_network=of_network)
    if "lpips" in options.metrics and options.lpips_weights is not None:
        yield functools.partial(load_lpips, options.lpips_network, options.lpips_weights, torch.device("cpu"))
    if options.prompts is not None:
        yield functools.partial(read_prompts, options.prompts)


def _too_few(num: int, drawn: int) -> None:
    raise OptionError(f"num: got {num}, but the sample section draws {drawn} images; set at most {drawn}")
