"""The report: one HTML file that needs nothing else."""

import os
from base64 import b64encode
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from diffprune.data.images import image_files
from diffprune.reporting.figures import error_by_layer, image_grid, loss_curve, removed_by_block
from diffprune.reporting.formats import change_of, protocol_of, text_of, title_of
from diffprune.reporting.run_summary import Findings, Record, compensated_layers

STATED = (
    "data", "num_calibration_images", "timestep_stride", "criterion", "ratio", "threshold", "steps", "batch_size",
    "optimizer", "learning_rate", "teacher_weight", "num", "sampler", "grid", "eta", "metrics", "mixed_precision",
    "seed",
)  # fmt: skip
"""Options that the page states per stage; run.json holds all."""

GENERATOR = '<meta name="generator" content="diffprune">'
"""By this a page is known as ours."""


def render(findings: Findings, title: str) -> str:
    """The page as text."""
    rows = findings.rows()
    names = list(dict.fromkeys(name for row in rows for name in row))
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    below = _below(findings)
    details = (findings.plan or {}).get("details", {})
    return environment.get_template("report.html.j2").render(
        title=title,
        generator=GENERATOR,
        headings=[title_of(name) for name in names],
        rows=[[(text_of(n, row.get(n)), change_of(n, row.get(n), rows[0].get(n))) for n in names] for row in rows],
        protocols=[(title_of(metric), protocol_of(facts)) for metric, facts in findings.protocols.items()],
        grids=[(model.name, _inline(image_grid(image_files(model.images)))) for model in findings.models],
        plan=findings.plan,
        timesteps=f"{details['timesteps_used']} timesteps scored" if "timesteps_used" in details else "",
        removed=_inline(removed_by_block(findings.plan["layers"])) if findings.plan else None,
        compensations=[_compensation(record, below[record.folder]) for record in findings.compensations],
        trainings=[(below[r.folder], _inline(loss_curve(r.content["result"]["history"]))) for r in findings.trainings],
        stages=[_stage(record, below[record.folder]) for record in findings.records],
        machine=findings.records[0].content.get("platform"),
        versions=findings.records[0].content.get("versions", {}),
    )


def _compensation(record: Record, folder: str) -> dict[str, Any]:
    found = record.content["result"]["compensation"]
    before, after = found["output_error_before"], found["output_error_after"]
    return {
        "folder": folder,
        "before": text_of("error", before),
        "after": text_of("error", after),
        "share": f"{after / before:.2f}" if before else "1",
        "fitted": found["layers_fitted"],
        "left": found["layers_left"],
        "helped": found["helped"],
        "plot": _inline(error_by_layer(compensated_layers(record))),
    }


def _below(findings: Findings) -> dict[Path, str]:
    """The records' folders as seen from the folder they share."""
    folders = [record.folder for record in findings.records]
    shared = Path(os.path.commonpath([folder.resolve().parent for folder in folders]))
    return {folder: str(folder.resolve().relative_to(shared)) for folder in folders}


def _stage(record: Record, folder: str) -> dict[str, Any]:
    options = record.content["options"]
    stated = [f"{name.replace('_', ' ')} {_shown(options[name])}" for name in STATED if options.get(name) is not None]
    return {
        "name": record.stage,
        "folder": folder,
        "options": ", ".join(stated),
        "time_s": record.content["wall_time_s"],
        "memory_mb": record.content["peak_memory_mb"],
    }


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _inline(png: bytes) -> str:
    return "data:image/png;base64," + b64encode(png).decode()
