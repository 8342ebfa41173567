"""Stage `prune`: carry out a plan."""

import copy
from pathlib import Path
from typing import Any

from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from diffprune.errors import OptionError
from diffprune.models.cards import carry_card
from diffprune.models.loading import Model, denoiser_component, denoiser_of, load_model
from diffprune.models.precision import in_stored_dtype
from diffprune.options import PlanOptions, PruneOptions
from diffprune.planning import Plan, read_plan
from diffprune.records import Existing, run_record
from diffprune.stages.calls import with_input_and_options
from diffprune.stages.plan import make_plan
from diffprune.surgery import prune_denoiser


@with_input_and_options(PruneOptions)
def prune(model: Any, plan: Plan, options: PruneOptions) -> Any:
    """A pruned copy of a pipeline (or bare denoiser); `model` is untouched and shares its other components.

    Raises PlanError when the plan was made for another model.
    """
    return carry_out(model, plan, options)


def carry_out(model: Any, plan: Plan, options: PruneOptions) -> Any:
    """`prune` with its options as one value."""
    small = prune_denoiser(denoiser_of(model), plan, **options.model_dump())
    if isinstance(model, nn.Module):
        return small
    return with_denoiser(model, small)


def with_denoiser(pipeline: Any, denoiser: ModelMixin) -> Any:
    """A copy of a pipeline that holds another denoiser and shares all other components."""
    changed = copy.copy(pipeline)
    changed.register_modules(**{denoiser_component(changed): denoiser})
    return changed


def prune_stage(
    source: str,
    options: PruneOptions,
    plan_options: PlanOptions,
    plan_file: Path | None,
    out: Path,
    *,
    existing: Existing = "refuse",
) -> dict[str, Any]:
    """Prune MODEL into a pipeline folder, by a plan file or by the options of `plan`."""
    if plan_file is not None and plan_options.model_fields_set - {"seed"}:
        given = ", ".join(sorted(plan_options.model_fields_set - {"seed"}))
        raise OptionError(f"a plan file already holds the options of plan; drop {given} or drop the plan")
    by = {} if plan_file is not None else plan_options.resolved()
    data = None if plan_file is not None else plan_options.data
    inputs = {
        "model": source,
        "plan": str(plan_file) if plan_file is not None else None,
        "data": data,
        **plan_options.files(),
    }
    with run_record(
        out, "prune", {**by, **options.resolved()}, inputs, existing=existing, neutral=options.neutral
    ) as run:
        if not run.finished_before:
            model = load_model(source)
            whole = model.whole
            plan = read_plan(plan_file) if plan_file is not None else make_plan(whole, plan_options)
            in_stored_dtype(carry_out(whole, plan, options), source).save_pretrained(run.folder)
            plan.save(run.folder / "plan.json")
            carry_card(source, run.folder, _paragraph(model, plan, options))
            run.result = plan.summary()
        return run.result


def _paragraph(model: Model, plan: Plan, options: PruneOptions) -> str:
    before, after = plan.before, plan.after
    weights = " Its weights were then drawn afresh." if options.reinit else ""
    return (
        f"## Pruned with diffprune\n\nThe {plan.class_name} of `{model.source}` was pruned structurally "
        f"(criterion {plan.criterion}, ratio {plan.options.get('ratio')}): from {before.params / 1e6:.2f}M parameters "
        f"and {before.macs / 1e9:.3f} GMACs to {after.params / 1e6:.2f}M and {after.macs / 1e9:.3f} GMACs.{weights} "
        "Load it with `import diffprune` before `DiffusionPipeline.from_pretrained`. "
        "The licence of the original holds for it."
    )
