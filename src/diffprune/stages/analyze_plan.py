"""Command `analyze plan`: draw the share of units that a plan keeps per group, and compare two plans."""

from pathlib import Path
from typing import Any

from diffprune.errors import PlanError
from diffprune.planning import Plan, read_plan
from diffprune.reporting.analysis_figures import kept_by_group
from diffprune.runs.atomic_files import atomic_write
from diffprune.runs.run_record import Existing, run_record


def plan_analysis_stage(first: str, second: str | None, out: Path, *, existing: Existing = "refuse") -> dict[str, Any]:
    """Draw the share of units that a plan keeps per group, and compare it with another plan if there is one.

    Writes `plan.png`, and into run.json per group: kind, number of units and share kept. A second plan adds its own
    share and the agreement: the units that both keep, divided by the units that at least one keeps.
    Raises PlanError if the two plans are for different models.
    """
    plan, other = read_plan(first), None if second is None else read_plan(second)
    if other is not None and other.fingerprint != plan.fingerprint:
        raise PlanError(
            f"{first} and {second} are plans for different models and cannot be compared; give two plans of one model"
        )
    with run_record(out, "analyze-plan", {}, {"plan": first, "other": second}, existing=existing) as run:
        if not run.finished_before:
            rows = _rows(plan, other)
            atomic_write(run.folder / "plan.png", kept_by_group(rows))
            run.result = {"groups": rows, **_comparison(plan, other)}
        return run.result


def _rows(plan: Plan, other: Plan | None) -> list[dict[str, Any]]:
    rows = []
    for name, units in plan.groups.items():
        row = {"group": name, "kind": units.kind, "units": units.num_units}
        row["kept_share"] = len(units.kept) / units.num_units
        if other is not None and name in other.groups:
            second = other.groups[name]
            row["other_share"] = len(second.kept) / second.num_units
            either = {*units.kept} | {*second.kept}
            row["agreement"] = len({*units.kept} & {*second.kept}) / len(either) if either else 1.0
        rows.append(row)
    return rows


def _comparison(plan: Plan, other: Plan | None) -> dict[str, Any]:
    """Return the cost of each pruned model, and the agreement over all groups that both plans contain."""
    costs = {"params_after": plan.after.params, "macs_after": plan.after.macs}
    if other is None:
        return costs
    shared = [name for name in plan.groups if name in other.groups]
    both = sum(len({*plan.groups[n].kept} & {*other.groups[n].kept}) for n in shared)
    either = sum(len({*plan.groups[n].kept} | {*other.groups[n].kept}) for n in shared)
    return {
        **costs,
        "other_params_after": other.after.params,
        "other_macs_after": other.after.macs,
        "agreement": both / either if either else 1.0,
    }
