"""Every denoiser class that diffusers exports: the smaller model equals the masked dense one, and reloads."""

import contextlib
import copy
import io
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import diffusers.models.transformers
import diffusers.models.unets
import pytest
import torch
from diffusers.models.modeling_utils import ModelMixin

import diffprune
from diffprune.architectures.depth.block_table import DEPTHS
from diffprune.architectures.example_inputs import derived_inputs as inputs
from diffprune.architectures.families import FAMILIES, family_of
from diffprune.artifact.slicing import is_weighted, shrink
from diffprune.compute.placement import placed
from diffprune.groups import find_groups, kept_indices
from diffprune.groups.group_finder import nested_block_lists
from tests.zoo.tiny_configs import CONFIGS, EXCLUDED, NOT_COVERED
from tests.zoo.zoo import (
    SMALL_INPUTS,
    largest_difference,
    masked,
    outputs_of,
    pruned_by_torch_pruning,
    ragged,
    small_inputs,
    tiny_model,
    uniform,
)

pytestmark = [  # diffusers' own
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning"),
    pytest.mark.filterwarnings("ignore:flex_attention called without:UserWarning"),
    pytest.mark.filterwarnings("ignore:Unwrapped parameters:UserWarning"),  # torch-pruning's
]

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "families.md"


@pytest.fixture(autouse=True)
def _small_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in SMALL_INPUTS.items():
        monkeypatch.setattr(inputs, name, size)


@dataclass(frozen=True)
class Result:
    """What the zoo finds out about a class: errors of heads and neurons, units, and what they come to."""

    error: float
    effect: float
    kinds: dict[str, int]
    across_units: bool
    rotary: bool
    removed: float
    blocks_without_units: tuple[str, ...]


@cache
def result(name: str) -> Result:
    model = tiny_model(name)
    groups = find_groups(model)
    ruled = tuple(group for group in groups if group.kind != "channels")
    kept = ragged(ruled)
    small = shrink(model, kept_indices(ruled, kept, model))
    ours = outputs_of(small)
    parts = [part for group in groups for part in group.slices]
    blocks = [f"{path}.{i}" for path, found in nested_block_lists(model).items() for i in range(len(found))]
    narrow = shrink(model, kept_indices(groups, uniform(groups, 0.3), model))
    outputs_of(narrow)
    return Result(
        error=largest_difference(ours, outputs_of(masked(model, small, ruled, kept))),
        effect=largest_difference(ours, outputs_of(model)) if ruled else 1.0,
        kinds={kind: n for kind in ("channels", "heads", "neurons") if (n := sum(g.kind == kind for g in groups))},
        across_units=any(not is_weighted(model.get_submodule(p.module)) for g in ruled for p in g.slices),
        rotary=any(group.rotary is not None for group in groups),
        removed=1 - narrow.num_parameters() / model.num_parameters(),
        blocks_without_units=tuple(b for b in blocks if not any(p.module.startswith(f"{b}.") for p in parts)),
    )


def exported() -> set[str]:
    """The model classes of diffusers' folders of transformers and UNets."""
    modules = (diffusers.models.transformers, diffusers.models.unets)
    found = {name for module in modules for name in dir(module)}
    classes = {name: getattr(diffusers, name, None) for name in found}
    return {name for name, kind in classes.items() if isinstance(kind, type) and issubclass(kind, ModelMixin)}


def test_every_class_that_diffusers_exports_has_its_place() -> None:
    """A class of a new diffusers belongs into CONFIGS, or with its reason into EXCLUDED or NOT_COVERED."""
    assert set(CONFIGS) | set(EXCLUDED) | set(NOT_COVERED) >= exported()
    assert not set(CONFIGS) & (set(EXCLUDED) | set(NOT_COVERED))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_smaller_model_equals_the_masked_dense_one(name: str) -> None:
    assert result(name).error < 1e-5
    assert result(name).effect > 1e-3


@pytest.mark.parametrize("name", CONFIGS)
def test_every_repeated_block_has_units_and_they_come_to_something(name: str) -> None:
    assert result(name).blocks_without_units == ()
    assert result(name).removed > 0.15


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CONFIGS if name in FAMILIES and FAMILIES[name].convolutional])
def test_channels_are_removed_as_torch_pruning_does(name: str) -> None:
    model = tiny_model(name)
    groups = find_groups(model, kinds=("channels",))
    kept = ragged(groups)
    small = shrink(model, kept_indices(groups, kept, model))
    with contextlib.redirect_stdout(io.StringIO()):
        reference = pruned_by_torch_pruning(model, groups, kept)
    for (path, ours), theirs in zip(small.state_dict().items(), reference.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), path
    assert all(torch.isfinite(output).all() for output in outputs_of(small))


HEAD = """# Denoiser families

After this page you know which denoiser classes of diffusers can be pruned, and which units of each.

{covered} of {all} classes are supported. `tests/zoo/test_zoo.py` writes this page from its results on a tiny model of
every class. It removes random units of every group. The pruned model equals the dense one with these units masked, to
1e-5. (For channels, torch-pruning's own surgery is the reference.) Every repeated block has prunable units.

- **norm**: a norm spans all heads, or all neurons, so its statistics change with the removed units. The pruned model
  only approximates the masked one. If this costs too much, lower the ratio of these layers by pattern, or leave out
  this kind.
- **rotary**: rotary tables span all heads. The manifest records the kept heads, and the attention uses their part.
- **blocks**: whole blocks that the config can describe without. The pruned model equals the dense one with the block
  bypassed, exactly (`tests/zoo/test_zoo_depth.py`). They are removed with `--kinds blocks` only.
- **removed**: share of the tiny model's parameters at ratio 0.3, without blocks.

| class | channels | heads | neurons | blocks | note | removed |
|---|---|---|---|---|---|---|"""


def page() -> str:
    """Return the page of families, from the results of the zoo."""
    names = exported() - set(EXCLUDED)
    covered = sorted(names & set(CONFIGS))
    lines = [HEAD.format(covered=len(covered), all=len(names))]
    for name in covered:
        found = result(name)
        notes = [word for word, holds in {"norm": found.across_units, "rotary": found.rotary}.items() if holds]
        kinds = " | ".join("yes" if kind in found.kinds else "" for kind in ("channels", "heads", "neurons"))
        blocks = "yes" if name in DEPTHS else ""
        lines.append(f"| {name} | {kinds} | {blocks} | {', '.join(notes)} | {found.removed:.0%} |")
    lines += ["", "Not supported:", ""]
    lines += [f"- {name}: {NOT_COVERED[name]}" for name in sorted(NOT_COVERED)]
    lines += ["", "Not counted, because they are no denoisers:", ""]
    lines += [f"- {name}: {EXCLUDED[name]}" for name in sorted(EXCLUDED)]
    return "\n".join(lines) + "\n"


def test_the_table_of_families_is_up_to_date() -> None:
    """On failure: python tests/zoo/test_zoo.py writes it."""
    assert PAGE.read_text() == page()


SOME = ("DiTTransformer2DModel", "SD3Transformer2DModel", "FluxTransformer2DModel", "LTXVideoTransformer3DModel")


@pytest.mark.parametrize("name", SOME)
def test_a_pruned_model_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    small = diffprune.prune(model, diffprune.plan(model, criterion="magnitude", ratio=0.3))
    small.save_pretrained(tmp_path)
    again = getattr(diffprune, name).from_pretrained(tmp_path)
    assert again.pruning == small.pruning
    assert all(torch.equal(a, b) for a, b in zip(outputs_of(small), outputs_of(again), strict=True))


RELOAD = """
import sys
import warnings
from pathlib import Path

import torch

warnings.simplefilter("ignore")
import diffprune
from tests.zoo.zoo import outputs_of, small_inputs

small_inputs()
wrong = []
for folder in sorted(Path(sys.argv[1]).iterdir()):
    model = getattr(diffprune, folder.name).from_pretrained(folder)
    expected = torch.load(folder / "outputs.pt", weights_only=True)
    if not all(torch.equal(a, b) for a, b in zip(outputs_of(model), expected, strict=True)):
        wrong.append(folder.name)
assert not wrong, wrong
"""


@pytest.mark.slow
def test_a_fresh_process_reloads_the_whole_zoo(tmp_path: Path) -> None:
    for name in CONFIGS:
        model = tiny_model(name)
        small = diffprune.prune(model, diffprune.plan(model, criterion="random", ratio=0.4))
        small.save_pretrained(tmp_path / name)
        torch.save(outputs_of(small), tmp_path / name / "outputs.pt")
    done = subprocess.run(
        [sys.executable, "-c", RELOAD, str(tmp_path)], cwd=Path(__file__).parents[2], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    small_inputs()
    PAGE.write_text(page())


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_offloaded_weights_come_to_where_the_inputs_are(name: str) -> None:
    """The meta device mixes with no other. Classes that do not run on it are left out."""
    model = tiny_model(name)
    told = family_of(model).example_inputs(model, 2, torch.device("meta"))
    try:
        with torch.no_grad():
            copy.deepcopy(model).to("meta")(**told)
    except (NotImplementedError, RuntimeError, ValueError):
        pytest.skip("does not run on the meta device")
    if name == "HunyuanDiT2DModel":
        pytest.xfail("its pooling hands the weights of a layer to a function")
    with placed(model, torch.device("meta"), offloaded=True), torch.no_grad():
        model(**told)
