"""The plan: the kept units of each group, as readable JSON with the fingerprint of its model."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from diffprune.compute.cost import Cost
from diffprune.errors import PlanError
from diffprune.groups import Group, fixed_blocks
from diffprune.groups.group import count_of
from diffprune.options import Kind
from diffprune.options.budget_options import requested_of
from diffprune.options.in_memory import InMemory
from diffprune.planning.prepared import Prepared
from diffprune.runs.atomic_files import atomic_write
from diffprune.runs.notebook import html_table, short_number

FORECAST = "without weights: random choice"
"""How the units of an architecture without weights are chosen."""

_ONE_PER_LINE = ("groups", "layers", "before", "after", "options")


class KeptUnits(BaseModel):
    """The kept units of one group, by index, ascending."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    num_units: int
    kept: tuple[int, ...]


class Plan(BaseModel):
    """Units to keep per group, and the options that chose them.

    Attributes:
        fingerprint: fingerprint of the architecture that the plan is for.
        before: cost of the model before pruning.
        after: forecast cost of the pruned model.
        layers: path of each layer -> its number of parameters before and after.
        groups: name of each group -> its kept units.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    class_name: str
    fingerprint: str
    criterion: str
    options: dict[str, Any]
    details: dict[str, Any]
    before: Cost
    after: Cost
    layers: dict[str, tuple[int, int]]
    groups: dict[str, KeptUnits]

    def __repr__(self) -> str:
        sizes = (f"{short_number(a)} -> {short_number(b)} {what}" for what, a, b in self._costs())
        return f"Plan({self.class_name}, {', '.join(sizes)}, {self.choice})"

    __str__ = __repr__

    def _repr_html_(self) -> str:
        costs = [["", "before", "after", "kept"]]
        costs += [[what, short_number(a), short_number(b), f"{b / a:.1%}"] for what, a, b in self._costs()]
        units = [["group", "kind", "units", "kept"]]
        units += [[name, u.kind, str(u.num_units), str(len(u.kept))] for name, u in self.groups.items()]
        title = f"Plan for {self.class_name}, {self.choice}"
        details = f"<details><summary>{len(self.groups)} groups</summary>{html_table(units)}</details>"
        return html_table(costs, title) + details

    def _costs(self) -> list[tuple[str, int, int]]:
        params, macs = (self.before.params, self.after.params), (self.before.macs, self.after.macs)
        return [("parameters", *params), ("MACs", *macs)]

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, atomically."""
        rows = self.model_dump(mode="json")
        parts = [f" {json.dumps(k)}: {_lines(v) if k in _ONE_PER_LINE else json.dumps(v)}" for k, v in rows.items()]
        atomic_write(Path(path), "{\n" + ",\n".join(parts) + "\n}\n")

    def summary(self) -> dict[str, Any]:
        """Return the figures of the plan as a flat mapping, for tables and `--json`."""
        timed = self.details.get("latency")
        return {
            "class_name": self.class_name,
            "criterion": self.criterion,
            **({"forecast": FORECAST} if self.is_forecast else {}),
            "requested": requested_of(self.options),
            "kept": ", ".join(f"{b / a:.1%} of the {what}" for what, a, b in self._costs() if a),
            "num_groups": len(self.groups),
            "params_before": self.before.params,
            "params_after": self.after.params,
            "macs_before": self.before.macs,
            "macs_after": self.after.macs,
            "attention_macs_before": self.before.attention_macs,
            "attention_macs_after": self.after.attention_macs,
            **({"latency_before_ms": timed["before_ms"], "latency_after_ms": timed["after_ms"]} if timed else {}),
        }

    @property
    def is_forecast(self) -> bool:
        """Whether the plan was made from an architecture without weights."""
        return not self.details.get("has_weights", True)

    @property
    def choice(self) -> str:
        """How the units were chosen, as text: by the criterion, or at random for a forecast without weights."""
        return f"forecast {FORECAST}" if self.is_forecast else f"criterion {self.criterion}"

    @property
    def kinds(self) -> frozenset[Kind]:
        """The kinds of units in `groups`."""
        return frozenset(units.kind for units in self.groups.values())

    def check_fits(self, prepared: Prepared) -> None:
        """Raise PlanError that lists every mismatch, if the plan does not fit the architecture, groups and units."""
        denoiser = prepared.denoiser
        if self.fingerprint != prepared.fingerprint:
            raise PlanError(
                f"the plan is for another model: a {self.class_name} with fingerprint {self.fingerprint[:12]}, but "
                f"this {type(denoiser).__name__} has {prepared.fingerprint[:12]}; make a new plan for this model"
            )
        groups = prepared.groups
        known = {g.name: g for g in groups}
        mistakes = [f"{name}: no such group" for name in self.groups if name not in known]
        mistakes += [f"{g.name}: not in the plan" for g in groups if g.kind in self.kinds and g.name not in self.groups]
        for name, units in self.groups.items():
            group = known.get(name)
            if group is None:
                continue
            if (units.kind, units.num_units) != (group.kind, group.num_units):
                mistakes.append(
                    f"{name}: the plan has {count_of(units.num_units, units.kind)}, "
                    f"the model has {count_of(group.num_units, group.kind)}"
                )
            elif list(units.kept) != sorted(set(units.kept)) or len(units.kept) < min(group.least, 1):
                mistakes.append(f"{name}: kept units must be ascending, without repeats and at least one")
            elif not {*units.kept} <= {*range(group.num_units)}:
                mistakes.append(f"{name}: kept units must lie in 0..{group.num_units - 1}")
            elif group.balance > 1 and len({len(p) for p in _parts(units.kept, group)}) > 1:
                mistakes.append(f"{name}: each of its {group.balance} norm groups must keep the same number of units")
            elif needed := fixed_blocks(denoiser).get(name, frozenset()) - {*units.kept}:
                mistakes.append(
                    f"{name}: block {min(needed)} cannot be removed, because other layers of the model need it; keep it"
                )
        if mistakes:
            raise PlanError("the plan does not fit the model:\n" + "\n".join(f"  {m}" for m in mistakes[:10]))


def read_plan(path: str | Path) -> Plan:
    """Read a plan; raise PlanError for a file that is missing or not a plan."""
    if isinstance(path, InMemory):
        plan: Plan = path.value
        return plan
    try:
        return Plan.model_validate_json(Path(path).read_bytes())
    except OSError as error:
        raise PlanError(f"cannot read the plan {path}: {error.strerror}") from error
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:10]]
        raise PlanError(f"{path} is not a plan:\n" + "\n".join(lines)) from None


def _lines(rows: dict[str, Any]) -> str:
    return "{\n" + ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in rows.items()) + "\n }"


def _parts(kept: Sequence[int], group: Group) -> list[list[int]]:
    size = group.num_units // group.balance
    parts: list[list[int]] = [[] for _ in range(group.balance)]
    for unit in kept:
        parts[unit // size].append(unit)
    return parts
