"""Wrong input: found before work starts, said clearly, non-zero exit, and nothing half-written."""

import json
import pickle
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from PIL import Image

import diffprune
from diffprune.cli.main import main
from tests.conftest import tiny_pipeline, tiny_unet

Refused = Callable[..., str]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a command that must fail; returns its message after checking that nothing was written or printed."""

    def check(*words: object, status: int = 1) -> str:
        capsys.readouterr()
        before = contents(tmp_path)
        assert main([str(word) for word in words]) == status
        printed = capsys.readouterr()
        assert printed.out == ""
        assert "Traceback" not in printed.err
        assert "diffprune: " in printed.err
        assert contents(tmp_path) == before
        return printed.err

    return check


@pytest.fixture
def model(pipeline_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny pipeline that a test may damage."""
    return Path(shutil.copytree(pipeline_folder, tmp_path / "model"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline, pruned and saved."""
    pipeline, folder = tiny_pipeline(attention_head_dim=8), tmp_path_factory.mktemp("whole")
    diffprune.prune(pipeline, diffprune.plan(pipeline, criterion="magnitude", ratio=0.5)).save_pretrained(folder)
    return folder


@pytest.fixture
def pruned(whole: Path, tmp_path: Path) -> Path:
    """A copy of the pruned pipeline that a test may damage."""
    return Path(shutil.copytree(whole, tmp_path / "pruned"))


# models


@pytest.mark.parametrize("command", ["inspect", "plan", "prune", "finetune", "sample"])
def test_a_missing_model_is_named_with_what_would_do(command: str, refused: Refused, tmp_path: Path) -> None:
    out = [] if command == "inspect" else ["--out", tmp_path / "out"]
    message = refused(command, tmp_path / "nowhere", *out)
    assert "nowhere" in message
    assert "or one of digits" in message


def test_a_missing_folder_that_looks_like_a_hub_id_is_told_apart(
    refused: Refused, caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    told = "there is no local folder {}, so it was looked up on the hub"
    assert told.format("out/pruned") in refused("inspect", "out/pruned")
    assert "there is no out/pruned in the folder out; looking it up on the hub" in caplog.text
    assert told.format("out/images") in refused("plan", "digits", "--data", "out/images", "--criterion", "taylor")


def test_an_empty_folder_is_not_a_model(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no model_index.json" in refused("inspect", tmp_path / "empty")


def test_truncated_weights_are_told_as_such(model: Path, refused: Refused) -> None:
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "damaged or truncated" in refused("sample", model, "--out", model / "images", "--num", 1)


def test_a_config_that_is_not_json_is_refused(model: Path, refused: Refused) -> None:
    (model / "unet" / "config.json").write_text("{")
    assert "config.json" in refused("inspect", model)
    assert "cannot be read as JSON" in refused("inspect", model / "unet")


def test_a_config_of_an_unknown_class_is_refused(model: Path, refused: Refused) -> None:
    (model / "unet" / "config.json").write_text('{"_class_name": "Frobnicator"}')
    assert "'Frobnicator', expected a diffusers model class" in refused("inspect", model / "unet")


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["model.pth", "model.ckpt", "model.bin", "model.pt"])
def test_a_pickle_is_refused_unopened(name: str, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    message = refused("prune", tmp_path / name, "--out", tmp_path / "out", "--criterion", "random")
    assert "was not opened" in message
    assert "safetensors" in message
    assert not (tmp_path / "sprung").exists()


def test_pickled_weights_in_a_folder_are_refused_unopened(model: Path, refused: Refused, tmp_path: Path) -> None:
    (model / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (model / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    for place in (model, model / "unet"):
        assert "Pickled weights (.bin) are not opened" in refused("inspect", place)
    assert not (tmp_path / "sprung").exists()


def test_a_folder_named_like_a_built_in_model_is_asked_about(
    pipeline_folder: Path, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(pipeline_folder, tmp_path / "ddpm-cifar10")
    monkeypatch.chdir(tmp_path)
    assert "write ./ddpm-cifar10 for the path" in refused("inspect", "ddpm-cifar10")
    assert main(["inspect", "./ddpm-cifar10", "--no-latency"]) == 0


def test_a_class_that_diffusers_does_not_have_is_not_pruned() -> None:
    class Own(UNet2DModel):
        pass

    with torch.random.fork_rng():
        own = Own.from_config(tiny_unet().config)
    plan = diffprune.plan(own, criterion="magnitude")
    with pytest.raises(diffprune.ModelError, match="is not a class of diffusers"):
        diffprune.prune(own, plan)


def test_a_bare_denoiser_has_no_noise_schedule(model: Path, refused: Refused, tmp_path: Path) -> None:
    for command, more in (("sample", []), ("finetune", ["--data", "digits"])):
        assert "is a bare denoiser" in refused(command, model / "unet", "--out", tmp_path / "out", *more)
    message = refused("plan", model / "unet", "--data", "digits", "--criterion", "taylor")
    assert "has no noise schedule" in message


def test_an_architecture_has_no_weights_to_use(refused: Refused, tmp_path: Path) -> None:
    assert "needs weights" in refused("plan", "ddpm-cifar10", "--criterion", "magnitude")
    message = refused("prune", "ddpm-cifar10", "--out", tmp_path / "out", "--criterion", "random")
    assert "reinit" in message


# manifests


def set_manifest(folder: Path, change: Callable[[dict], None]) -> None:
    path = folder / "unet" / "pruning.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def set_width(path: str, name: str, value: object) -> Callable[[dict], None]:
    return lambda manifest: manifest["modules"].setdefault(path, {}).update({name: value})


DAMAGED_MANIFESTS: dict[str, tuple[Callable[[dict], None], str]] = {
    "unknown version": (lambda m: m.update(format_version=2), "format version 2, this diffprune reads version 1"),
    "no version": (lambda m: m.pop("format_version"), "format version None"),
    "negative size": (set_width("conv_in", "out_channels", -8), "conv_in.out_channels: got -8, expected 1 to 16"),
    "zero size": (set_width("conv_in", "out_channels", 0), "got 0, expected 1 to 16"),
    "absurd size": (set_width("conv_in", "out_channels", 10**12), "got 1000000000000, expected 1 to 16"),
    "fractional size": (set_width("conv_in", "out_channels", 8.5), "conv_in.out_channels: got 8.5"),
    "missing module": (set_width("mid_block.resnets.7", "in_channels", 8), "mid_block.resnets.7: no such module"),
    "not a width": (set_width("conv_in", "training", 1), "conv_in.training: not a width of a Conv2d"),
    "code in its place": (set_width("conv_in", "forward", 1), "conv_in.forward: not a width"),
    "ragged norm groups": (set_width("conv_norm_out", "num_groups", 3), "cannot be divided into 3 equal norm groups"),
    "another class": (lambda m: m.update(class_name="UNet1DModel"), "is for a UNet1DModel"),
    "unknown part": (lambda m: m.update(hooks=[]), "hooks: no such option"),
    "widths that do not fit the weights": (set_width("conv_out", "in_channels", 4), "weights do not fit"),
}


@pytest.mark.parametrize("case", DAMAGED_MANIFESTS)
def test_a_damaged_manifest_is_refused(case: str, pruned: Path, refused: Refused, tmp_path: Path) -> None:
    change, expected = DAMAGED_MANIFESTS[case]
    set_manifest(pruned, change)
    message = refused("sample", pruned, "--out", tmp_path / "images", "--num", 1)
    assert expected in message
    assert "pruning.json" in message


def test_a_manifest_that_is_not_json_is_refused(pruned: Path, refused: Refused) -> None:
    (pruned / "unet" / "pruning.json").write_text("[]")
    assert "pruning.json cannot be read" in refused("inspect", pruned)


def test_a_lost_manifest_is_told_as_such(pruned: Path, refused: Refused) -> None:
    (pruned / "unet" / "pruning.json").unlink()
    assert "pruning.json" in refused("inspect", pruned)


# plans


def test_a_plan_for_another_model_is_refused(model: Path, refused: Refused, tmp_path: Path) -> None:
    assert main(["plan", "digits", "--criterion", "magnitude", "--out", str(tmp_path / "plan.json")]) == 0
    refused_message = refused("prune", model, "--plan", tmp_path / "plan.json", "--out", tmp_path / "out")
    assert "the plan is for another model" in refused_message


@pytest.mark.parametrize(("text", "expected"), [("{", "is not a plan"), ("{}", "fingerprint"), (None, "cannot read")])
def test_a_damaged_plan_is_refused(
    text: str | None, expected: str, model: Path, refused: Refused, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "plan.json").write_text(text)
    assert expected in refused("prune", model, "--plan", tmp_path / "plan.json", "--out", tmp_path / "out")


def test_a_plan_and_options_of_plan_exclude_each_other(model: Path, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    words = ("prune", model, "--plan", tmp_path / "plan.json", "--ratio", 0.2, "--out", tmp_path / "out")
    assert "leave out --ratio, or leave out the plan" in refused(*words, status=2)


# options


@pytest.mark.parametrize("ratio", ["0", "1", "-0.3", "1.5", "nan", "inf", "third"])
def test_a_ratio_outside_0_and_1_is_refused(ratio: str, model: Path, refused: Refused, tmp_path: Path) -> None:
    for command in ("plan", "prune"):
        message = refused(command, model, f"--ratio={ratio}", "--out", tmp_path / "out", status=2)
        assert f"invalid options:\n  --ratio: got '{ratio}', expected a number between 0 and 1" in message


NEAR = {
    "criterion": (["plan", "digits", "--criterion", "diffprunning"], "did you mean 'diff-pruning'?"),
    "option": (["plan", "digits", "--raito", "0.3"], "did you mean --ratio?"),
    "command": (["prnue", "digits"], "did you mean 'prune'?"),
    "sampler": (["sample", "digits", "--out", "out", "--sampler", "dim"], "did you mean 'ddim'?"),
    "metric": (["evaluate", "a", "b", "--metrics", "ssmi"], "did you mean 'ssim'?"),
}


@pytest.mark.parametrize("case", NEAR)
def test_an_unknown_name_comes_with_its_near_match(case: str, refused: Refused) -> None:
    words, expected = NEAR[case]
    assert expected in refused(*words, status=2)


def test_all_wrong_options_are_reported_at_once(refused: Refused) -> None:
    words = ["--ratio", "2", "--criterion", "magnitude", "--threshold", "0.1", "--batch-size", "0"]
    message = refused("plan", "digits", *words, status=2)
    assert all(name in message for name in ("  --ratio: got '2'", "  --threshold: belongs", "  --batch-size: got '0'"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--keep-macs", "1.5"], "--keep-macs: got '1.5', expected a number between 0 and 1"),
        (["--max-ratio", "0"], "--max-ratio: got '0', expected a number above 0 and at most 1"),
        (["--threshold", "1"], "--threshold: got '1', expected a number of at least 0 and below 1"),
        (["--rounds", "two"], "--rounds: got 'two', expected an integer of at least 1"),
        (["--max-latency-ms", "-1"], "--max-latency-ms: got '-1', expected a number above 0"),
    ],
)
def test_a_number_out_of_range_comes_with_the_range(words: list[str], expected: str, refused: Refused) -> None:
    assert f"  {expected}\n" in refused("plan", "digits", *words, status=2)


def test_a_recipe_names_its_options_without_dashes(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: x\nmodel: digits\nplan: {keep_macs: 1.5}\n")
    message = refused("run", tmp_path / "recipe.yaml", "--out", tmp_path / "out", status=2)
    assert "plan.keep_macs: got 1.5, expected a number between 0 and 1" in message


def test_an_option_that_took_the_model_for_its_value_is_named(refused: Refused, tmp_path: Path) -> None:
    message = refused("prune", "--ratio", 0.3, "digits", "--out", tmp_path / "out", status=2)
    assert "required: model; --ratio took every word up to the next option: write what is required first" in message
    assert "--set took every word" in refused("run", "--out", tmp_path, "--set", "a=1", "recipe.yaml", status=2)


def test_missing_arguments_are_named(refused: Refused) -> None:
    assert "model" in refused("plan", status=2)
    assert "--out" in refused("prune", "digits", status=2)


def test_the_python_api_refuses_the_same(pipeline: object, image_folder: Path) -> None:
    with pytest.raises(diffprune.OptionError, match="did you mean 'ratio'"):
        diffprune.plan(pipeline, raito=0.3)
    with pytest.raises(ValueError, match="ratio: got nan"):
        diffprune.plan(pipeline, ratio=float("nan"))
    with pytest.raises(diffprune.OptionError, match="needs calibration images"):
        diffprune.plan(pipeline, criterion="diff-pruning")


def test_a_device_that_is_not_there_is_refused(model: Path, refused: Refused, tmp_path: Path) -> None:
    for device in ("cuda:99", "gpu", "meta"):
        words = ("sample", model, "--out", tmp_path / "images", "--device", device, "--num", 1)
        assert f"device '{device}'" in refused(*words)


def test_more_steps_than_timesteps_are_refused(model: Path, refused: Refused, tmp_path: Path) -> None:
    assert "20 timesteps" in refused("sample", model, "--out", tmp_path / "images", "--steps", 21, status=2)


def test_steps_that_an_offset_moves_past_the_last_timestep_are_refused(refused: Refused, tmp_path: Path) -> None:
    scheduler = DDIMScheduler(num_train_timesteps=20, steps_offset=1)
    DDIMPipeline(tiny_unet(), scheduler).save_pretrained(tmp_path / "model")
    words = ["sample", tmp_path / "model", "--out", tmp_path / "images", "--num", 1, "--scheduler", "own"]
    message = refused(*words, "--steps", 20, status=2)
    assert "got 20, for which DDIMScheduler starts at timestep 20, but the model has timesteps 0 to 19" in message
    assert main([str(word) for word in [*words, "--steps", 19]]) == 0


def test_steps_that_a_scheduler_does_not_take_are_refused(model: Path, refused: Refused, tmp_path: Path) -> None:
    words = ["sample", model, "--out", tmp_path / "images", "--scheduler", "LCMScheduler", "--steps", 20]
    assert "steps: got 20, which LCMScheduler does not support" in refused(*words, status=2)


def test_a_batch_that_does_not_divide_is_refused(model: Path, refused: Refused, tmp_path: Path) -> None:
    words = ["finetune", model, "--data", "digits", "--out", tmp_path / "out"]
    assert "multiple of 3" in refused(*words, "--batch-size", 16, "--accumulation-steps", 3, status=2)


def test_training_without_images_is_refused(model: Path, refused: Refused, tmp_path: Path) -> None:
    assert "data: missing" in refused("finetune", model, "--out", tmp_path / "out", status=2)


# images


def test_missing_and_empty_image_folders_are_refused(model: Path, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no images at" in refused("plan", model, "--data", tmp_path / "nowhere")
    assert "holds no images" in refused("plan", model, "--data", tmp_path / "empty")
    assert "holds no images" in refused("evaluate", tmp_path / "empty", tmp_path / "empty")
    assert "no folder" in refused("evaluate", tmp_path / "nowhere", tmp_path / "empty")
    assert "no folder" in refused("report", tmp_path / "nowhere", "--out", tmp_path / "report.html")
    assert "no finished stage" in refused("report", tmp_path / "empty", "--out", tmp_path / "report.html")


@pytest.fixture
def images(image_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(image_folder, tmp_path / "photos"))


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"not an image", lambda b: b""])
def test_a_corrupt_image_is_named(
    damage: Callable[[bytes], bytes], images: Path, model: Path, refused: Refused, tmp_path: Path
) -> None:
    victim = images / "0007.png"
    victim.write_bytes(damage(victim.read_bytes()))
    message = refused("plan", model, "--data", images, "--num-calibration-images", 12, "--out", tmp_path / "plan.json")
    assert "0007.png is not a readable image" in message
    message = refused("prune", model, "--data", images, "--num-calibration-images", 12, "--out", tmp_path / "out")
    assert "0007.png is not a readable image" in message
    assert "0007.png is not a readable image" in refused("evaluate", images, images)
    words = ["--steps", 2, "--batch-size", 12, "--tracker", "none", "--out", tmp_path / "out"]
    assert "0007.png is not a readable image" in refused("finetune", model, "--data", images, *words)


def test_too_few_images_say_how_many_are_needed(images: Path, model: Path, refused: Refused) -> None:
    message = refused("plan", model, "--data", images)
    assert "holds 12 images, but calibration needs 128" in message
    assert "set --num-calibration-images to at most 12" in message


def test_a_data_set_that_is_no_folder_is_refused_for_image_pairs(images: Path, refused: Refused) -> None:
    message = refused("evaluate", images, "digits")
    assert "ssim and mse compare image pairs and need a folder of images, got digits" in message
    assert "set --metrics to frechet_distance" in message
    assert "mse compares image pairs" in refused("evaluate", images, "digits", "--metrics", "mse")


def test_unpaired_images_are_refused(images: Path, refused: Refused, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "others")
    (tmp_path / "others" / "0003.png").unlink()
    assert "only one of" in (message := refused("evaluate", images, tmp_path / "others"))
    assert "(11): 3;" in message


def test_pairs_of_two_sizes_are_refused(images: Path, refused: Refused, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "others")
    Image.new("L", (8, 8)).save(tmp_path / "others" / "0003.png")
    assert "paired metrics need equal shapes" in refused("evaluate", images, tmp_path / "others")


# places to write


WRITERS = {
    "prune": ["--criterion", "magnitude"],
    "sample": ["--num", 1, "--steps", 1],
    "finetune": ["--data", "digits", "--steps", 1, "--batch-size", 2],
    "plan": ["--criterion", "magnitude"],
}


@pytest.mark.parametrize("command", WRITERS)
def test_a_folder_that_is_not_ours_is_left_alone(command: str, model: Path, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("the only copy")
    for more in ([], ["--overwrite"]):
        message = refused(command, model, *WRITERS[command], "--out", tmp_path / "thesis", *more)
        assert "was not made by" in message


@pytest.mark.parametrize("command", WRITERS)
def test_a_file_is_not_a_folder(command: str, model: Path, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        assert "is a file, expected a folder" in refused(command, model, *WRITERS[command], "--out", place)


def test_other_options_need_overwrite(model: Path, refused: Refused, tmp_path: Path) -> None:
    words = ["sample", model, "--out", tmp_path / "images", "--num", 2]
    assert main([str(word) for word in [*words, "--steps", 1]]) == 0
    message = refused(*words, "--steps", 2)
    assert "(--steps: was 1, is 2)" in message
    assert main([str(word) for word in [*words, "--steps", 2, "--overwrite"]]) == 0


def test_a_file_of_someone_else_is_not_replaced(model: Path, images: Path, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("{}")
    (tmp_path / "mine.html").write_text("<html>")
    words = ["--criterion", "magnitude", "--out", tmp_path / "mine.json"]
    assert "was not made by diffprune" in refused("plan", model, *words)
    assert main(["evaluate", str(images), str(images), "--out", str(tmp_path / "metrics")]) == 0
    for place in (tmp_path / "mine.html", tmp_path):
        assert "was not made by diffprune" in refused("report", tmp_path / "metrics", "--out", place)


LIMIT = 40_000
"""Bytes per file in the test of a full disk: fewer than the tiny model's weights, more than its JSON."""


@pytest.mark.parametrize("command", ["prune", "finetune"])
def test_a_full_disk_leaves_nothing_half_written(
    command: str, pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [command, pipeline_folder, *WRITERS[command], "--out", tmp_path / "out"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
    try:
        status = main([str(word) for word in words])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    printed = capsys.readouterr()
    assert status == 1
    assert printed.out == ""
    assert "cannot write" in printed.err
    assert "free space" in printed.err
    assert "Traceback" not in printed.err
    left = sorted(p.name for p in tmp_path.rglob("*") if p.is_file() and "tfevents" not in p.name)
    assert left == ([] if command == "prune" else ["run.json"])
    if command == "finetune":
        assert '"running"' in (tmp_path / "out" / "run.json").read_text()


# recipes


def test_all_mistakes_of_a_recipe_are_reported_at_once(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "model: digits\n"
        "data: digits\n"
        "plan: {ratio: 1.2, criterion: taylr}\n"
        "finetune: {stesp: 10, batch_size: 0}\n"
        "smaple: {num: 4}\n"
        "evaluate: {metrics: [ssim]}\n"
    )
    message = refused("run", tmp_path / "recipe.yaml", "--out", tmp_path / "out", status=2)
    for expected in (
        "name: missing",
        "plan.ratio: got 1.2",
        "plan.criterion: got 'taylr'",
        "did you mean 'taylor'?",
        "finetune.stesp: no such option; did you mean 'steps'?",
        "finetune.batch_size: got 0",
        "smaple: no such option; did you mean 'sample'?",
        "evaluate: needs a section `sample`",
    ):
        assert expected in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [("plan: [", "is not YAML"), ("just words", "holds a str"), (None, "expected a YAML file or a shipped recipe")],
)
def test_a_recipe_that_cannot_be_read_is_refused(
    text: str | None, expected: str, refused: Refused, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "recipe.yaml").write_text(text)
    assert expected in refused("run", tmp_path / "recipe.yaml", "--out", tmp_path / "out", status=2)
