"""The public functions: each command is one, with a signature that people and type checkers read."""

import copy
import inspect
import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from PIL import Image

import diffprune
from diffprune.cli.commands import COMMANDS
from diffprune.data.digits import digits
from diffprune.data.memory_images import data_source
from diffprune.options import PlanOptions, parse_options
from tests.helpers.tiny_pipelines import tiny

ROOT = Path(__file__).parents[1]
STUB = ROOT / "src" / "diffprune" / "__init__.pyi"

FUNCTIONS = {
    "data": "prepare_data", "analyze plan": "analyze_plan", "analyze sensitivity": "analyze_sensitivity",
    "analyze stages": "analyze_stages", "train-classifier": "train_classifier", "recipes": "read_recipe", "demo": "run",
}  # fmt: skip
"""Commands whose function has another name."""

SMALL: dict[str, Any] = {"num_calibration_images": 4, "timestep_stride": 250}


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return diffprune.load_pipeline("digits")


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return digits()[0][:12]


@pytest.fixture(scope="module")
def plan(pipeline: Any) -> diffprune.Plan:
    return diffprune.plan(pipeline, criterion="magnitude", ratio=0.5)


def stub_maker() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts" / "make_stub.py"))


def test_every_command_is_a_public_function() -> None:
    names = {FUNCTIONS.get(command, command) for command in COMMANDS}
    assert names <= {*diffprune.__all__}
    assert all(callable(getattr(diffprune, name)) for name in names)


def test_every_option_of_a_command_is_a_keyword_of_its_function() -> None:
    for name, command in COMMANDS.items():
        options = {field for kind in command.options for field in kind.model_fields}
        function = getattr(diffprune, FUNCTIONS.get(name, name))
        if options:
            assert options <= {*inspect.signature(function).parameters}, name


def test_a_signature_shows_each_option_with_type_and_default() -> None:
    parameters = inspect.signature(diffprune.plan).parameters
    assert parameters["timestep_stride"].default == "auto"
    assert parameters["num_calibration_images"].annotation is int
    assert "Sequence[Any] | PIL.Image.Image | torch.Tensor" in parameters["data"].annotation
    assert inspect.signature(diffprune.finetune).parameters["learning_rate"].annotation == float | None
    assert parameters["ratio"].kind is inspect.Parameter.KEYWORD_ONLY
    documented = inspect.getdoc(diffprune.plan) or ""
    assert "\n    ratio: " in documented
    assert "also images in memory: a list of PIL images" in documented


def test_the_committed_stub_is_the_one_that_the_script_makes() -> None:
    assert STUB.read_text() == stub_maker()["stub"](), "run python scripts/make_stub.py"


PROGRAM = """\
from pathlib import Path
import torch
from torch import Tensor, nn
from PIL import Image
import diffprune

def right(net: nn.Module, images: list[Image.Image], pixels: Tensor) -> dict[str, object]:
    plan = diffprune.plan(net, criterion="magnitude", ratio=0.5, kinds="heads", device=torch.device("cpu"))
    small: nn.Module = diffprune.prune(net, plan)
    pipe = diffprune.load_pipeline("digits")
    recovered = diffprune.finetune(diffprune.prune(pipe, Path("plan.json")), pipe, data=pixels, mixed_precision="bf16")
    recovered.save_pretrained("recovered")
    diffprune.train(images, steps=10).save_pretrained("trained")
    diffprune.sample(pipe, num=2)[0].save(diffprune.sample(pipe, "images")[0].with_suffix(".gif"))
    return diffprune.evaluate(images, Path("images"), metrics="ssim")

def wrong(net: nn.Module) -> None:
    diffprune.plan(net, ratoi=0.5)
    diffprune.plan(net, ratio="half")
    diffprune.plan(3)
    diffprune.sample(net, "out", metrics="ssim")
    diffprune.evaluate("a", "b", metrics=["simm"])
"""


@pytest.mark.slow
def test_a_type_checker_accepts_right_calls_and_names_wrong_ones(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    found = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--ignore-missing-imports", program],
        capture_output=True, text=True, check=False, cwd=ROOT,
    ).stdout  # fmt: skip
    first_wrong = PROGRAM.splitlines().index("def wrong(net: nn.Module) -> None:") + 2
    lines = [int(line.split(":")[1]) for line in found.splitlines() if ": error:" in line]
    assert sorted(set(lines)) == [*range(first_wrong, first_wrong + 5)], found


def test_functions_take_values_and_paths(pipeline: Any, plan: diffprune.Plan, tmp_path: Path) -> None:
    plan.save(tmp_path / "plan.json")
    by_path, by_value = (diffprune.prune(pipeline, some) for some in (str(tmp_path / "plan.json"), plan))
    from_name = diffprune.prune("digits", tmp_path / "plan.json")
    for one in (by_value, from_name):
        for a, b in zip(by_path.unet.parameters(), one.unet.parameters(), strict=True):
            assert torch.equal(a, b)
    assert diffprune.inspect(by_path, latency=False)["params"] == plan.after.params


def test_with_out_a_function_writes_the_folder_of_the_stage_and_resumes(
    pipeline: Any, plan: diffprune.Plan, images: list[Image.Image], tmp_path: Path
) -> None:
    small = diffprune.prune(pipeline, plan, out=tmp_path / "pruned")
    record = json.loads((tmp_path / "pruned" / "run.json").read_text())
    assert record["inputs"]["model"]["source"].startswith("UNet2DModel in memory (DDPMPipeline), sha256 ")
    assert record["inputs"]["plan"]["source"].startswith("plan in memory (UNet2DModel), sha256 ")
    options: dict[str, Any] = {"data": images, "steps": 2, "batch_size": 4, "tracker": "none", "checkpoint_every": 1}
    first = diffprune.finetune(small, pipeline, out=tmp_path / "recovered", **options)
    changed = (tmp_path / "recovered" / "run.json").stat().st_mtime_ns
    again = diffprune.finetune(small, pipeline, out=tmp_path / "recovered", **options)
    assert (tmp_path / "recovered" / "run.json").stat().st_mtime_ns == changed
    assert all(map(torch.equal, first.unet.state_dict().values(), again.unet.state_dict().values()))
    with pytest.raises(diffprune.FolderError, match="--overwrite"):
        diffprune.finetune(small, pipeline, out=tmp_path / "recovered", **{**options, "steps": 1})


def test_options_of_a_folder_are_errors_without_one(pipeline: Any, images: list[Image.Image]) -> None:
    with pytest.raises(diffprune.OptionError, match="preview_every, tracker: needs an output folder"):
        diffprune.finetune(pipeline, data=images, preview_every=5, tracker="wandb")
    with pytest.raises(diffprune.OptionError, match="teacher_weight: needs a teacher"):
        diffprune.finetune(pipeline, data=images, teacher_weight=0.5)
    with pytest.raises(diffprune.OptionError, match="teacher: its class or inputs differ"):
        diffprune.finetune(pipeline, tiny("sd"), data=images)
    with pytest.raises(diffprune.OptionError, match="checkpoint_every: needs an output folder"):
        diffprune.train(images, checkpoint_every=5)


def test_all_wrong_options_of_two_sets_are_listed_at_once(pipeline: Any) -> None:
    with pytest.raises(diffprune.OptionError) as caught:
        diffprune.prune(pipeline, ratoi=0.5, compensate="perhaps", num_noises=0)
    text = str(caught.value)
    assert text.startswith("options of prune:\n")
    assert "did you mean 'ratio'" in text
    assert text.count("\n") == 3
    with pytest.raises(diffprune.OptionError, match="the plan already holds these options"):
        diffprune.prune(pipeline, diffprune.plan(pipeline, criterion="magnitude"), ratio=0.2)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("device", torch.device("cpu"), "cpu"), ("mixed_precision", torch.bfloat16, "bf16"),
        ("mixed_precision", torch.float32, "no"), ("kinds", "heads", ("heads",)), ("kinds", ["heads"], ("heads",)),
        ("ignore", "conv_in", ("conv_in",)), ("data", Path("a"), "a"), ("prompts", "a.txt", Path("a.txt")),
    ],
)  # fmt: skip
def test_single_values_paths_and_torch_values_are_taken(name: str, value: Any, expected: Any) -> None:
    assert getattr(parse_options(PlanOptions, {name: value}, what="test"), name) == expected


def test_prompts_are_texts_or_a_file(tmp_path: Path) -> None:
    pipeline = tiny("sd")
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    options: dict[str, Any] = {"num": 2, "steps": 1, "height": 16, "width": 16}
    texts = diffprune.sample(pipeline, tmp_path / "texts", prompts=["a cat", "a dog"], **options)
    file = diffprune.sample(pipeline, tmp_path / "file", prompts=tmp_path / "prompts.txt", **options)
    assert [path.read_bytes() for path in texts] == [path.read_bytes() for path in file]
    drawn = diffprune.sample(pipeline, prompts=["a cat", "a dog"], **options)
    assert [image.tobytes() for image in drawn] == [Image.open(path).tobytes() for path in texts]
    record = json.loads((tmp_path / "texts" / "run.json").read_text())
    assert record["options"]["prompts"] == record["inputs"]["prompts"]["source"]
    assert record["options"]["prompts"].startswith("2 prompts in memory (list), sha256 ")
    with pytest.raises(diffprune.OptionError, match="prompts: got 3, expected texts"):
        diffprune.sample(pipeline, tmp_path / "wrong", prompts=["a cat", 3])


def test_sample_without_a_folder_returns_the_images_of_the_folder(pipeline: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"num": 3, "steps": 2, "batch_size": 2}
    drawn = diffprune.sample(pipeline, **options)
    written = diffprune.sample(pipeline, tmp_path / "images", **options)
    assert [image.tobytes() for image in drawn] == [Image.open(path).tobytes() for path in written]
    with pytest.raises(diffprune.OptionError, match="sequence: needs an output folder"):
        diffprune.sample(pipeline, sequence=True)
    with pytest.raises(TypeError, match=r"sample: missing a required argument: 'model'; help\(diffprune\.sample\)"):
        diffprune.sample(num=2)


def test_other_dtypes_are_errors(pipeline: Any) -> None:
    with pytest.raises(diffprune.OptionError, match=r"mixed_precision: got 'torch\.float64', expected one of"):
        diffprune.plan(pipeline, mixed_precision=torch.float64)


def test_values_show_themselves_shortly(plan: diffprune.Plan, pipeline: Any, tmp_path: Path) -> None:
    assert repr(plan) == "Plan(UNet2DModel, 1.11M -> 281k parameters, 64.5M -> 16.3M MACs, criterion magnitude)"
    assert "<table>" in plan._repr_html_()
    assert repr(diffprune.find_groups(pipeline.unet)[0]).startswith("Group(conv_in, 32 channels, ")
    facts = diffprune.inspect(pipeline, latency=False)
    assert "parameters      1.113M" in repr(facts).splitlines()
    assert "<th" in facts._repr_html_()
    assert json.loads(json.dumps(facts)) == facts


def test_a_report_is_a_path_that_shows_its_page(pipeline: Any, tmp_path: Path) -> None:
    diffprune.sample(pipeline, tmp_path / "original", num=2, steps=2)
    page = diffprune.report(tmp_path / "original", tmp_path / "report.html")
    assert Path(page) == tmp_path / "report.html"
    assert page.models[0]["model"] == "original"
    assert page._repr_html_().startswith("<iframe srcdoc=")


def test_training_leaves_the_accelerator_of_the_caller_alone(pipeline: Any, images: list[Image.Image]) -> None:
    """A training in bf16 next to an accelerator in fp32, whose accumulation is its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    own = Accelerator(cpu=True, gradient_accumulation_steps=3)
    before = (own.mixed_precision, own.gradient_accumulation_steps, own.state.__dict__.copy())
    diffprune.finetune(pipeline, data=images, steps=1, batch_size=4, device="cpu", mixed_precision="bf16")
    assert (own.mixed_precision, own.gradient_accumulation_steps, own.state.__dict__) == before
    assert PartialState().num_processes == 1


def test_another_pipeline_or_data_set_in_memory_does_not_find_the_result_of_the_first(
    pipeline: Any, tmp_path: Path
) -> None:
    diffprune.sample(pipeline, tmp_path / "images", num=1, steps=2)
    other = type(pipeline)(pipeline.unet, type(pipeline.scheduler)(num_train_timesteps=10))
    with pytest.raises(diffprune.FolderError, match="model"):
        diffprune.sample(other, tmp_path / "images", num=1, steps=2)
    changed = copy.deepcopy(pipeline)
    next(module for module in changed.unet.modules() if isinstance(module, torch.nn.GroupNorm)).eps = 0.1
    with pytest.raises(diffprune.FolderError, match="model"):
        diffprune.sample(changed, tmp_path / "images", num=1, steps=2)


def test_captions_and_labels_of_a_data_set_are_part_of_its_identity(images: list[Image.Image]) -> None:
    columns = [{"image": images, "text": [text] * len(images), "label": [label] * len(images)}
               for text, label in (("a", 0), ("b", 0), ("a", 1), ("a", 0))]  # fmt: skip
    names = [str(data_source(datasets.Dataset.from_dict(c).cast_column("image", datasets.Image()))) for c in columns]
    assert len({*names}) == 3
    assert names[0] == names[3]
