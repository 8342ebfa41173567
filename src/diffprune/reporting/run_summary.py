"""Read the run records below some folders into one summary: models with their numbers, plans, trainings."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffprune.errors import FolderError
from diffprune.runs.atomic_files import read_json
from diffprune.runs.run_record import RECORD_NAME, identity

NOT_METRICS = ("protocol", "num_corrupt")
"""Entries of an evaluation's result that are no metric values."""

COSTS = ("params", "macs", "latency_ms", "images_per_s")

SAMPLING = (
    "seed", "steps", "scheduler", "sampler", "grid", "eta", "classes", "per_class", "guidance_scale",
    "negative_prompt", "interpolate", "prompts",
)  # fmt: skip
"""Sampling options that two image sets share when image i of both starts from the same noise."""


@dataclass(frozen=True)
class Record:
    """A stage's folder and its run.json."""

    folder: Path
    content: Mapping[str, Any]

    @property
    def stage(self) -> str:
        """Name of the stage that wrote the folder."""
        return str(self.content["stage"])

    def has_input(self, name: str, other: "Record") -> bool:
        """Return whether the input `name` was the folder of another record, by content: folders may have moved."""
        entry = self.content["inputs"].get(name)
        return bool(entry) and entry["identity"] == identity(str(other.folder))


@dataclass(frozen=True)
class SampledModel:
    """A model that images were sampled from: its metrics by name (costs first), and the folder of its images.

    paired: whether image i starts from the same noise as image i of the original.
    """

    name: str
    images: Path
    metrics: Mapping[str, float]
    paired: bool


@dataclass(frozen=True)
class PlanFile:
    """The content of a plan.json, and the folder that it was read from."""

    folder: Path
    content: Mapping[str, Any]


@dataclass(frozen=True)
class RunSummary:
    """Everything that a report shows.

    models: sorted by size, the largest first. original: the model that the others are compared with.
    protocols: metric -> how the values of all models were computed.
    """

    models: list[SampledModel]
    original: SampledModel | None
    protocols: Mapping[str, Mapping[str, Any]]
    plans: list[PlanFile]
    compensations: list[Record]
    trainings: list[Record]
    records: list[Record]

    def rows(self) -> list[dict[str, Any]]:
        """Return one flat row per model."""
        return [{"model": model.name, **model.metrics} for model in self.models]


def summarize(folders: Iterable[Path]) -> RunSummary:
    """Read the records of all finished stages in or below the folders.

    Raises FolderError when a folder is missing, when no stage is finished, or when protocols differ.
    """
    folders = list(folders)
    paths: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise FolderError(f"no folder {folder}; expected the folder of a stage or of a recipe")
        paths += [path for path in sorted(folder.rglob(RECORD_NAME)) if not path.parent.name.startswith(".")]
    records = [Record(path.parent, content) for path in dict.fromkeys(paths) if (content := _finished(path))]
    if not records:
        raise FolderError(f"no finished stage in {', '.join(map(str, folders))}: no {RECORD_NAME} with status finished")
    sampled = [record for record in records if record.stage == "sample"]
    sampled.sort(key=lambda record: -record.content["result"]["params"] + _is_trained(record, records))
    original = _original(sampled, records)
    models = [_model(record, original, records) for record in sampled]
    return RunSummary(
        models=models,
        original=None if original is None else models[sampled.index(original)],
        protocols=_protocols([e for record in sampled for e in _evaluations(record, records)]),
        plans=_plans(records),
        compensations=[record for record in records if record.content["result"].get("compensation")],
        trainings=[record for record in records if record.content["result"].get("history")],
        records=sorted(records, key=lambda record: str(record.content["started"])),
    )


def compensated_layers(record: Record) -> list[dict[str, Any]]:
    """Return the layers that a pruning run compensated, in the order of the forward pass."""
    layers: list[dict[str, Any]] = read_json(record.folder / "compensation.json")["layers"]
    return layers


def _finished(path: Path) -> dict[str, Any] | None:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise FolderError(f"cannot read {path}: {error}; run the stage again") from error
    return content if content.get("status") == "finished" else None


def _original(sampled: list[Record], records: list[Record]) -> Record | None:
    """The image set that others were evaluated against; else the set of the largest model."""
    evaluations = [record for record in records if record.stage == "evaluate"]
    references = [s for s in sampled if any(e.has_input("reference", s) for e in evaluations)]
    return next(iter(references or sampled), None)


def _model(record: Record, original: Record | None, records: list[Record]) -> SampledModel:
    result = record.content["result"]
    metrics = {name: result[name] for name in COSTS if name in result}
    for evaluation in _evaluations(record, records):
        metrics |= {name: value for name, value in evaluation.content["result"].items() if name not in NOT_METRICS}
    return SampledModel(record.folder.name, record.folder, metrics, original is not None and _same(record, original))


def _same(record: Record, original: Record) -> bool:
    ours, theirs = record.content["options"], original.content["options"]
    return all(ours.get(name) == theirs.get(name) for name in SAMPLING)


def _evaluations(sampled: Record, records: list[Record]) -> list[Record]:
    """The evaluations of the images of a sampling record."""
    return [record for record in records if record.stage == "evaluate" and record.has_input("images", sampled)]


def _protocols(evaluations: list[Record]) -> dict[str, Mapping[str, Any]]:
    """The one protocol of each metric; raises FolderError where values of one metric have two protocols."""
    protocols: dict[str, tuple[Record, Mapping[str, Any]]] = {}
    for record in evaluations:
        for metric, facts in record.content["result"].get("protocol", {}).items():
            first, first_facts = protocols.setdefault(metric, (record, facts))
            if first_facts["hash"] != facts["hash"]:
                raise FolderError(
                    f"{metric} in {first.folder} and in {record.folder} was computed by different protocols "
                    f"({_differing(first_facts, facts)}), so the values cannot be compared; evaluate both with the "
                    "same options, or write separate reports"
                )
    return {metric: facts for metric, (_, facts) in protocols.items()}


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    names = [name for name in {**first, **second} if name not in ("hash", "note")]
    return ", ".join(f"{n}: {first.get(n)}, {second.get(n)}" for n in names if first.get(n) != second.get(n))


def _is_trained(sampled: Record, records: list[Record]) -> float:
    """Half a parameter for a finetuned model: it sorts after the pruned model of equal size."""
    return 0.5 * any(record.stage == "finetune" and sampled.has_input("model", record) for record in records)


def _plans(records: list[Record]) -> list[PlanFile]:
    """The plans of the plan and prune stages; a plan that was copied into a pruned folder counts once."""
    plans: list[PlanFile] = []
    for record in records:
        path = record.folder / "plan.json"
        if record.stage in ("plan", "prune") and path.exists():
            content = read_json(path)
            if all(plan.content != content for plan in plans):
                plans.append(PlanFile(record.folder, content))
    return plans
