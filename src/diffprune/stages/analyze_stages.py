"""Command `analyze stages`: image quality of pruned models by the timesteps of their scores."""

from pathlib import Path
from typing import Any

from diffprune.criteria.score_pass import scored_timesteps
from diffprune.errors import ModelError, OptionError
from diffprune.evaluation.measure_images import measure
from diffprune.options import UNCALIBRATED_CRITERIA, EvaluateOptions, SampleOptions, StagesOptions
from diffprune.pipelines.diffusion import DiffusionProcess, process_of
from diffprune.pipelines.loading import load_model
from diffprune.pipelines.prompts import files_of
from diffprune.planning import Plan, Prepared, make_plan, prepare, read_plan, resolve_auto
from diffprune.pruning.surgery import prune_denoiser
from diffprune.reporting.analysis_figures import quality_by_stage
from diffprune.runs.atomic_files import atomic_write
from diffprune.runs.run_record import Existing, run_record
from diffprune.sampling.image_folder import sample_to_folder


def stages_stage(source: str, options: StagesOptions, out: Path, *, existing: Existing = "refuse") -> dict[str, Any]:
    """Prune MODEL once per stage of timesteps and compare images before and after; an interrupted run resumes.

    Writes `stages.png`, and into run.json per stage: first and last timestep, loss, ssim, mse, MACs, relative loss.
    ssim and mse compare images of the pruned and the original model from the same noise. The relative loss is the mean
    loss of the stage, divided by the largest mean of all stages. Source: Fang, Ma and Wang, NeurIPS 2023, the figure of
    SSIM against the stage of the scores.
    Raises OptionError for a criterion without timesteps, ModelError for a bare denoiser.
    """
    if options.criterion in UNCALIBRATED_CRITERIA:
        raise OptionError(
            f"criterion: {options.criterion} does not depend on timesteps; choose a criterion that uses images"
        )
    options = resolve_auto(options)
    model = load_model(source)
    if model.pipeline is None:
        raise ModelError(
            f"{source} is a bare denoiser; the analysis needs the noise schedule of a pipeline; give a pipeline"
        )
    prepared = prepare(model.pipeline, options.kinds, calibrating=options)
    process = process_of(model.pipeline)
    stages = _stages(process.num_timesteps, options)
    inputs = {"model": source, "data": options.data, **files_of(options.prompts)}
    with run_record(
        out, "analyze-stages", options.resolved(), inputs, existing=existing, neutral=options.neutral, resumable=True
    ) as run:
        if not run.finished_before:
            rows = _measure(prepared, process, stages, options, run.folder)
            atomic_write(run.folder / "stages.png", quality_by_stage(rows))
            run.result = {"stages": rows}
        return run.result


def _stages(num_timesteps: int, options: StagesOptions) -> list[tuple[int, int]]:
    """Return the first and the last timestep of each stage; raise OptionError for more stages than timesteps."""
    whole = scored_timesteps(num_timesteps, options)
    num_scored = whole.stop - whole.start
    size, rest = divmod(num_scored, options.num_stages)
    if size == 0:
        raise OptionError(
            f"num_stages: got {options.num_stages}, the scores use {num_scored} timesteps; give at most {num_scored}"
        )
    starts = [whole.start + i * size + min(i, rest) for i in range(options.num_stages)]
    return list(zip(starts, [start - 1 for start in [*starts[1:], whole.stop]], strict=True))


def _measure(
    prepared: Prepared,
    process: DiffusionProcess,
    stages: list[tuple[int, int]],
    options: StagesOptions,
    folder: Path,
) -> list[dict[str, Any]]:
    """Return one row per stage; all plans share the groups and the calibration set of `prepared`."""
    drawing = SampleOptions(**options.model_dump(include={"num", "steps", "seed", "device", "mixed_precision"}))
    comparing = EvaluateOptions(metrics=("ssim", "mse"), device=options.device)
    sample_to_folder(prepared.denoiser, process, folder / "original", drawing)
    rows = []
    for number, (first, last) in enumerate(stages):
        stage_folder = folder / f"stage-{number:02d}"
        plan = _plan(
            prepared, options.model_copy(update={"first_timestep": first, "last_timestep": last}), stage_folder
        )
        sample_to_folder(prune_denoiser(prepared, plan), process, stage_folder, drawing)
        losses = plan.details["losses"]
        rows.append(
            {
                "first_timestep": first,
                "last_timestep": last,
                "loss": sum(losses) / len(losses),
                **measure(str(stage_folder), str(folder / "original"), comparing),
                "macs": plan.after.macs,
            }
        )
    largest = max(row["loss"] for row in rows)
    return [{**row, "relative_loss": row["loss"] / largest} for row in rows]


def _plan(prepared: Prepared, options: StagesOptions, folder: Path) -> Plan:
    """Return the plan of one stage; a plan saved by an interrupted run is read."""
    path = folder / "plan.json"
    if not path.exists():
        make_plan(prepared, options).save(path)
    return read_plan(path)
