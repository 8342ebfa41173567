"""What the records below some folders say: models with their figures, what was removed, what training did."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffprune.errors import FolderError
from diffprune.runs.atomic_files import read_json
from diffprune.runs.run_record import RECORD_NAME, identity

NO_FIGURES = ("protocol", "num_corrupt")
"""What stands beside the numbers of an evaluation."""

COSTS = ("params", "macs", "latency_ms", "images_per_s")


@dataclass(frozen=True)
class Record:
    """A stage's folder and its run.json."""

    folder: Path
    content: Mapping[str, Any]

    @property
    def stage(self) -> str:
        """The stage that made the folder."""
        return str(self.content["stage"])

    def used(self, name: str, other: "Record") -> bool:
        """Whether an input was the folder of another record, by content: folders may have moved since."""
        entry = self.content["inputs"].get(name)
        return bool(entry) and entry["identity"] == identity(str(other.folder))


@dataclass(frozen=True)
class SampledModel:
    """A model that drew images: its figures by name (costs, then metrics), and the folder of its images."""

    name: str
    images: Path
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Findings:
    """All that a report shows.

    protocols: metric -> how the numbers of all models came about.
    """

    models: list[SampledModel]
    protocols: Mapping[str, Mapping[str, Any]]
    plan: Mapping[str, Any] | None
    compensations: list[Record]
    trainings: list[Record]
    records: list[Record]

    def rows(self) -> list[dict[str, Any]]:
        """One row per model, flat."""
        return [{"model": model.name, **model.figures} for model in self.models]


def find(folders: Iterable[Path]) -> Findings:
    """Read the records of all finished stages in or below the folders; raises FolderError when there are none."""
    paths: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise FolderError(f"no folder {folder}")
        paths += [p for p in sorted(folder.rglob(RECORD_NAME)) if not p.parent.name.startswith(".")]
    records = [Record(path.parent, content) for path in dict.fromkeys(paths) if (content := _finished(path))]
    if not records:
        raise FolderError(f"no finished stage in {', '.join(map(str, folders))}: no {RECORD_NAME} that says so")
    sampled = [_model(record, records) for record in records if record.stage == "sample"]
    return Findings(
        protocols=_protocols([e for r in records if r.stage == "sample" for e in _evaluations(r, records)]),
        models=sorted(sampled, key=lambda model: -model.figures["params"] + _is_trained(model, records)),
        plan=next(
            (_plan(r) for r in records if r.stage in ("plan", "prune") and (r.folder / "plan.json").exists()), None
        ),
        compensations=[r for r in records if r.content["result"].get("compensation")],
        trainings=[r for r in records if r.content["result"].get("history")],
        records=sorted(records, key=lambda r: str(r.content["started"])),
    )


def _finished(path: Path) -> dict[str, Any] | None:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise FolderError(f"{path} cannot be read: {error}") from error
    return content if content.get("status") == "finished" else None


def _model(record: Record, records: list[Record]) -> SampledModel:
    figures = {name: record.content["result"][name] for name in COSTS if name in record.content["result"]}
    for other in _evaluations(record, records):
        figures |= {name: value for name, value in other.content["result"].items() if name not in NO_FIGURES}
    return SampledModel(record.folder.name, record.folder, figures)


def _evaluations(sampled: Record, records: list[Record]) -> list[Record]:
    """The evaluations of the images that a record tells of."""
    return [record for record in records if record.stage == "evaluate" and record.used("images", sampled)]


def _protocols(evaluations: list[Record]) -> dict[str, Mapping[str, Any]]:
    """The one protocol of each metric; raises FolderError where numbers that would stand side by side have two."""
    found: dict[str, tuple[Record, Mapping[str, Any]]] = {}
    for record in evaluations:
        for metric, facts in record.content["result"].get("protocol", {}).items():
            first, known = found.setdefault(metric, (record, facts))
            if known["hash"] != facts["hash"]:
                raise FolderError(
                    f"{metric} in {first.folder} and in {record.folder} came about by different protocols "
                    f"({_differing(known, facts)}); such numbers cannot be compared: evaluate again with the same "
                    "options, or report them apart"
                )
    return {metric: facts for metric, (_, facts) in found.items()}


def _differing(known: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    names = [name for name in {**known, **facts} if name not in ("hash", "note")]
    return ", ".join(f"{n}: {known.get(n)}, {facts.get(n)}" for n in names if known.get(n) != facts.get(n))


def _is_trained(model: SampledModel, records: list[Record]) -> float:
    """Half a parameter for a model that was finetuned, so that it comes after its equal that was not."""
    record = next(r for r in records if r.folder == model.images)
    return 0.5 * any(r.stage == "finetune" and record.used("model", r) for r in records)


def compensated_layers(record: Record) -> list[dict[str, Any]]:
    """The layers that a pruning has compensated, in the order of the forward pass."""
    layers: list[dict[str, Any]] = read_json(record.folder / "compensation.json")["layers"]
    return layers


def _plan(record: Record) -> dict[str, Any]:
    return read_json(record.folder / "plan.json")
