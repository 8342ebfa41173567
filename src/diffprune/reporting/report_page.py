"""Render a run summary as the report page: one HTML file without external references."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from diffprune.options.budget_options import requested_of
from diffprune.reporting.formats import change_of, explanations_of, protocol_of, text_of, title_of
from diffprune.reporting.image_section import image_section
from diffprune.reporting.pareto import pareto_plots
from diffprune.reporting.report_figures import error_by_layer, loss_curve, parameters_by_block, pareto_plot
from diffprune.reporting.run_summary import PlanFile, Record, RunSummary, compensated_layers

SHOWN_OPTIONS = (
    "data", "num_calibration_images", "timestep_stride", "criterion", "ratio", "keep_params", "keep_macs",
    "keep_latency", "max_latency_ms", "threshold", "steps", "batch_size", "optimizer", "learning_rate",
    "teacher_weight", "num", "sampler", "grid", "eta", "metrics", "mixed_precision", "seed",
)  # fmt: skip
"""Options that the page shows per stage; run.json holds all of them."""

GENERATOR = '<meta name="generator" content="diffprune">'
"""Mark of a page that diffprune wrote and may replace."""


def render(summary: RunSummary, title: str) -> str:
    """Return the page as HTML text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    names = _short_names(summary)
    rows = summary.rows()
    return environment.get_template("report.html.j2").render(
        title=title,
        generator=GENERATOR,
        plans=[_plan(plan, names) for plan in summary.plans],
        table=_table(rows),
        explanations=explanations_of({name for row in rows for name in row}),
        protocols=[(title_of(metric), protocol_of(facts)) for metric, facts in summary.protocols.items()],
        pareto=[
            pareto_plot(p.points, p.cost, p.quality, f"{title_of(p.quality)} against {title_of(p.cost)} of each model")
            for p in pareto_plots(rows)
        ],
        images=image_section(summary),
        compensations=[_compensation(record, names[record.folder]) for record in summary.compensations],
        trainings=[_training(record, names[record.folder]) for record in summary.trainings],
        stages=[_stage(record, names[record.folder]) for record in summary.records],
        platform=summary.records[0].content.get("platform"),
        versions=summary.records[0].content.get("versions", {}),
    )


def _table(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Headings and cells of the table of models; a cell has a text, a sort value and a change to the first row."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {
        "headings": [title_of(name) for name in names],
        "rows": [
            [
                {
                    "text": text_of(name, row.get(name)),
                    "value": "" if row.get(name) is None else row[name],
                    "change": change_of(name, row.get(name), rows[0].get(name)),
                }
                for name in names
            ]
            for row in rows
        ],
    }


def _plan(plan: PlanFile, names: Mapping[Path, str]) -> dict[str, Any]:
    content = plan.content
    timed = content["details"].get("latency") or {}
    costs = [(name, content["before"].get(name), content["after"].get(name)) for name in ("params", "macs")]
    costs.append(("latency_ms", timed.get("before_ms"), timed.get("after_ms")))
    num_timesteps = content["details"].get("timesteps_used")
    return {
        "folder": names[plan.folder],
        "class_name": content["class_name"],
        "criterion": content["criterion"],
        "timesteps": f"scores of {num_timesteps} timesteps" if num_timesteps else "",
        "requested": requested_of(content["options"]),
        "costs": [
            {
                "title": title_of(name),
                "before": text_of(name, before),
                "after": text_of(name, after),
                "kept_percent": round(100 * after / before, 1),
            }
            for name, before, after in costs
            if before and after
        ],
        "blocks": parameters_by_block(content["layers"], "parameters of each block before and after pruning"),
    }


def _compensation(record: Record, folder: str) -> dict[str, Any]:
    result = record.content["result"]["compensation"]
    before, after = result["output_error_before"], result["output_error_after"]
    return {
        "folder": folder,
        "before": text_of("error", before),
        "after": text_of("error", after),
        "share": f"{after / before:.0%}" if before else "100%",
        "num_fitted": result["layers_fitted"],
        "num_unchanged": result["layers_left"],
        "accepted": result["helped"],
        "plot": error_by_layer(compensated_layers(record), "error of each layer before and after compensation"),
    }


def _training(record: Record, folder: str) -> dict[str, Any]:
    return {"folder": folder, "plot": loss_curve(record.content["result"]["history"], f"training loss of {folder}")}


def _stage(record: Record, folder: str) -> dict[str, Any]:
    options = record.content["options"]
    shown = [(name, options[name]) for name in SHOWN_OPTIONS if options.get(name) is not None]
    return {
        "name": record.stage,
        "folder": folder,
        "options": ", ".join(f"{title_of(name)} {_option_text(value)}" for name, value in shown),
        "time_s": record.content["wall_time_s"],
        "memory_mb": record.content["peak_memory_mb"],
    }


def _option_text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _short_names(summary: RunSummary) -> dict[Path, str]:
    """Each record's folder -> its path below the folder that all of them share."""
    folders = [record.folder for record in summary.records]
    shared = Path(os.path.commonpath([folder.resolve().parent for folder in folders]))
    return {folder: str(folder.resolve().relative_to(shared)) for folder in folders}
