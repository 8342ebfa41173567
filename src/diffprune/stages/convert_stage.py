"""Command `convert`: convert a checkpoint of another system into a diffusers folder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from diffusers import DDPMPipeline
from diffusers.models.modeling_utils import ModelMixin

from diffprune.architectures.families import FAMILIES
from diffprune.artifact.pruned_classes import PrunedMixin, stock_model
from diffprune.compute.cost import cost_of
from diffprune.conversion.checkpoint_reader import read_checkpoint
from diffprune.conversion.checkpoint_source import check_source, fetched
from diffprune.conversion.ddpm import PUBLISHED, from_ddpm, schedule
from diffprune.conversion.ldm import from_ldm
from diffprune.conversion.pruned_shapes import from_shapes
from diffprune.conversion.state_dicts import Kind, weights_in
from diffprune.errors import OptionError
from diffprune.options import ConvertOptions
from diffprune.pipelines.denoiser_access import denoiser_of, with_denoiser
from diffprune.pipelines.loading import load_model
from diffprune.runs.atomic_files import atomic_write
from diffprune.runs.run_record import Existing, run_record


@dataclass(frozen=True)
class _Converted:
    """A converted checkpoint.

    Attributes:
        model: the pipeline or bare denoiser.
        architecture: the architecture that the weights fit.
        weights: which weights of the file were read.
        notes: remarks for the user.
    """

    model: Any
    architecture: str
    weights: Kind
    notes: tuple[str, ...]


def convert_checkpoint(format: str, source: str, options: ConvertOptions) -> Any:
    """Return the pipeline of a checkpoint file; for format `shapes` with a config.json, the bare denoiser.

    Raises OptionError for wrong options, ModelError for weights that do not fit.
    """
    _check(format, source, options)
    return _converted(format, source, options, None).model


def convert_stage(
    format: str, source: str, options: ConvertOptions, out: Path, *, existing: Existing = "refuse"
) -> dict[str, Any]:
    """Convert FILE into a pipeline folder; for format `shapes` with a config.json, into a denoiser folder."""
    _check(format, source, options)
    recorded = {"format": format, **options.resolved()}
    with run_record(out, "convert", recorded, {"file": source, "arch": options.arch}, existing=existing) as run:
        if not run.finished_before:
            converted = _converted(format, source, options, run.folder)
            converted.model.save_pretrained(run.folder)
            atomic_write(run.folder / "README.md", _card(format, source, converted))
            run.result = _result(format, converted)
        return run.result


def _ddpm(content: Any, options: ConvertOptions, source: str) -> _Converted:
    weights = weights_in(content, wanted=options.weights)
    pipeline, architecture = from_ddpm(weights.tensors, options.arch)
    return _Converted(pipeline, architecture, weights.kind, weights.notes)


def _ldm(content: Any, options: ConvertOptions, source: str) -> _Converted:
    assert options.arch is not None
    tensors = weights_in(content, wanted=None).tensors
    pipeline, kind, notes = from_ldm(tensors, options.arch, options.weights)
    return _Converted(pipeline, options.arch, kind, notes)


def _shapes(content: Any, options: ConvertOptions, source: str) -> _Converted:
    assert options.arch is not None
    weights = weights_in(content, wanted=options.weights)
    original = load_model(options.arch)
    denoiser: Any = from_shapes(weights.tensors, original.denoiser, heads=options.heads, source=source)
    model: Any = denoiser
    if original.pipeline is not None:
        model = with_denoiser(original.pipeline, denoiser)
    elif options.arch in PUBLISHED:
        model = DDPMPipeline(denoiser, schedule(options.arch))
    return _Converted(model, options.arch, weights.kind, weights.notes)


_FORMATS: Mapping[str, Callable[[Any, ConvertOptions, str], _Converted]] = {
    "ddpm": _ddpm,
    "ldm": _ldm,
    "shapes": _shapes,
}
_NEEDED_ARCH = {"ldm": "celebahq-256, cin256-v2 or the research config (YAML)", "shapes": "the unpruned MODEL"}


def _check(format: str, source: str, options: ConvertOptions) -> None:
    if format not in _FORMATS:
        near = get_close_matches(format, _FORMATS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise OptionError(f"format: got {format!r}, expected one of {', '.join(_FORMATS)}{hint}")
    wrong = []
    if format in _NEEDED_ARCH and options.arch is None:
        wrong.append(f"arch: missing; format {format} needs {_NEEDED_ARCH[format]}")
    if format != "shapes" and options.heads is not None:
        wrong.append(f"heads: belongs to format shapes, not to {format}; leave it out")
    try:
        check_source(source, options.sha256)
    except OptionError as error:
        wrong.append(str(error))
    if wrong:
        raise OptionError("\n".join(wrong))


def _converted(format: str, source: str, options: ConvertOptions, folder: Path | None) -> _Converted:
    with fetched(source, sha256=options.sha256, folder=folder) as path:
        checkpoint = read_checkpoint(path)
        converted = _FORMATS[format](checkpoint.content, options, source)
    foreign = (
        (f"not read, because that would execute code: {', '.join(checkpoint.foreign)}",) if checkpoint.foreign else ()
    )
    return _Converted(converted.model, converted.architecture, converted.weights, (*converted.notes, *foreign))


def _result(format: str, converted: _Converted) -> dict[str, Any]:
    bare = isinstance(converted.model, ModelMixin)
    denoiser: Any = converted.model if bare else denoiser_of(converted.model)
    facts: dict[str, Any] = {
        "format": format,
        "architecture": converted.architecture,
        "class_name": type(denoiser).__name__,
        "pipeline": None if bare else type(converted.model).__name__,
        "weights": converted.weights,
        "params": sum(p.numel() for p in denoiser.parameters()),
        "pruned": isinstance(denoiser, PrunedMixin),
        "notes": list(converted.notes),
    }
    if facts["pruned"]:
        facts["params_stock"] = sum(p.numel() for p in stock_model(denoiser).parameters())
    if type(denoiser).__name__ in FAMILIES:
        facts |= cost_of(denoiser).as_dict()
    return facts


def _card(format: str, source: str, converted: _Converted) -> str:
    load = "diffprune.load_pipeline" if format != "ddpm" else "DDPMPipeline.from_pretrained"
    return (
        f"## Converted with diffprune\n\nConverted from `{Path(source).name}` (format {format}, architecture "
        f"{converted.architecture}, {converted.weights} weights). Load it with `{load}`. The license of the original "
        "applies to it.\n"
    )
