"""Save a model into the output folder of a stage."""

import shutil
from pathlib import Path

from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from diffprune.runs.atomic_files import atomic_folder


def save_into(model: DiffusionPipeline | ModelMixin, folder: Path) -> None:
    """Save a model and move it into `folder`, its `model_index.json` last, so that an incomplete one does not load."""
    with atomic_folder(folder / ".pipeline") as temporary:
        model.save_pretrained(temporary)
    saved = folder / ".pipeline"
    for part in sorted(saved.iterdir(), key=lambda p: p.name == "model_index.json"):
        target = folder / part.name
        if target.is_dir():
            shutil.rmtree(target)
        part.replace(target)
    saved.rmdir()
