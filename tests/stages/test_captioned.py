"""Text-conditioned models on images with captions, and what is kept on disk while a stage works."""

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.transforms.v2.functional import to_pil_image
from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel

import diffprune
from diffprune.calibration.latent_cache import LatentCache
from diffprune.calibration.text_latents import calibrate_on_texts, training_latents
from diffprune.calibration.texts import open_texts
from diffprune.cli.main import main
from diffprune.compute.placement import restored_devices
from diffprune.options import FinetuneOptions, PlanOptions
from diffprune.pipelines.denoiser_access import denoiser_of
from diffprune.pipelines.diffusion import process_of
from diffprune.planning import rounds
from diffprune.runs.atomic_files import read_json
from diffprune.training import training_data
from tests.helpers.tiny_pipelines import SIZES, tiny

CPU = torch.device("cpu")
CAPTIONS = ("a red cat", "blue", "a dog", "a blue cat", "red")
SCORING = [
    "--num-calibration-images", "3", "--timestep-stride", "10", "--ratio", "0.4", "--threshold", "0",
    "--batch-size", "2",
]  # fmt: skip


def images() -> list[Image.Image]:
    generator = torch.Generator().manual_seed(0)
    return [to_pil_image(torch.rand((3, 16, 16), generator=generator)) for _ in CAPTIONS]


@pytest.fixture
def captioned(tmp_path: Path) -> str:
    rows = datasets.Dataset.from_dict({"image": images(), "text": list(CAPTIONS)})
    file = str(tmp_path / "captioned.parquet")
    rows.cast_column("image", datasets.Image()).to_parquet(file)
    return file


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text("a red cat\nblue\n")
    return file


def saved(name: str, folder: Path) -> Path:
    tiny(name).save_pretrained(folder / name)
    return folder / name


@pytest.mark.parametrize(
    "name", ["sd", "flux", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sdxl", "sd3", "pixart"))]
)
def test_a_pipeline_is_scored_and_finetuned_on_images_with_captions(name: str, captioned: str, tmp_path: Path) -> None:
    model = saved(name, tmp_path)
    told = ["--data", captioned, *SIZES[name]]
    assert main(["prune", str(model), "--no-compensate", *SCORING, *told, "--out", str(tmp_path / "small")]) == 0
    small = ["finetune", str(tmp_path / "small"), "--teacher", str(model), "--steps", "2", "--batch-size", "4"]
    assert main([*small, *told, "--out", str(tmp_path / "recovered")]) == 0
    with torch.random.fork_rng():
        again = DiffusionPipeline.from_pretrained(tmp_path / "recovered")
    assert type(denoiser_of(again)).__module__ == "diffprune"
    result = read_json(tmp_path / "recovered" / "run.json")["result"]
    assert result["num_images"] == 5
    assert result["timestep_sampling"] == ("logit-normal" if name in ("sd3", "flux") else "uniform")
    for folder in ("small", "recovered"):
        assert not (tmp_path / folder / "latents").exists()


def test_each_latent_is_that_of_its_image_and_told_its_caption(captioned: str) -> None:
    pipeline = tiny("sd")
    options = PlanOptions(data=captioned, num_calibration_images=5, batch_size=2)
    calibration = calibrate_on_texts(process_of(pipeline), options, CPU)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(0)).tolist()
    pixels = torch.stack([pipeline.image_processor.preprocess(images()[i])[0] for i in order])
    with torch.no_grad():
        latents = pipeline.vae.encode(pixels).latent_dist.mode() * pipeline.vae.config.scaling_factor
        texts, _ = pipeline.encode_prompt([CAPTIONS[i] for i in order], "cpu", 1, False)
    assert torch.allclose(calibration.clean, latents, atol=1e-4)
    assert torch.allclose(calibration.condition["encoder_hidden_states"], texts, atol=1e-4)


def test_no_more_images_are_encoded_than_training_sees(captioned: str) -> None:
    options = FinetuneOptions(data=captioned, steps=1, batch_size=3)
    opened = training_data.open_training_data(process_of(tiny("sd")), options)
    assert len(opened) == 3
    assert len(set(opened.indices)) == 3  # type: ignore[union-attr]


def test_an_image_that_cannot_be_read_is_left_out_with_its_caption(tmp_path: Path) -> None:
    for number, image in enumerate(images()):
        image.save(tmp_path / f"{number}.png")
    lines = [{"file_name": f"{number}.png", "text": text} for number, text in enumerate(CAPTIONS)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "1.png").write_bytes(b"nothing")
    options = PlanOptions(data=str(tmp_path), num_calibration_images=5, batch_size=5)
    process = process_of(tiny("sd"))
    with pytest.raises(diffprune.DataError, match=r"1.png is not a readable image"):
        calibrate_on_texts(process, options, CPU)
    skipping = options.model_copy(update={"on_corrupt": "skip"})
    with pytest.raises(
        diffprune.DataError, match="only 4 of 5 images can be read, expected 5; set num_calibration_images to 4"
    ):
        open_texts(process, skipping, 5)
    opened = open_texts(process, skipping, 5, at_most=True)
    assert sorted(opened.indices) == [0, 2, 3, 4]
    assert [prompt.text for prompt in opened.prompts] == [CAPTIONS[i] for i in opened.indices]


def test_previews_are_drawn_from_prompts(captioned: str, prompts: Path, tmp_path: Path) -> None:
    words = ["finetune", str(saved("sd", tmp_path)), "--data", captioned, "--steps", "2", "--batch-size", "2"]
    words += ["--preview-every", "2", "--preview-steps", "1", "--prompts", str(prompts)]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "previews" / "step-0000002.png").is_file()


@pytest.mark.slow
def test_of_two_processes_the_first_makes_the_latents_that_both_train_on(captioned: str, tmp_path: Path) -> None:
    words = ["finetune", str(saved("sd", tmp_path)), "--data", captioned, "--steps", "3", "--batch-size", "4"]
    words += ["--device", "cpu", "--tracker", "none", "--optimizer", "adamw", "--mixed-precision", "no"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    done = subprocess.run(
        [*launch, "diffprune", *words, "--out", str(tmp_path / "two")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("latents of images") == 1
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)


class Passes:
    """Counts the forward passes of text encoders, and what autoencoders encode or decode."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num = 0
        for kind, names in (
            (CLIPTextModel, ("forward",)), (CLIPTextModelWithProjection, ("forward",)), (T5EncoderModel, ("forward",)),
            (AutoencoderKL, ("encode", "decode")),
        ):  # fmt: skip
            for name in names:
                monkeypatch.setattr(kind, name, self._counted(getattr(kind, name)))

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.num += 1
            return call(*args, **kwargs)

        return counted


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("source", ["generated", "captions"])
def test_a_killed_finetune_ends_in_the_same_weights_without_asking_the_text_encoder_again(
    source: str, captioned: str, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = saved("sd", tmp_path)
    words = ["finetune", str(model), "--steps", "6", "--batch-size", "2", "--checkpoint-every", "2"]
    words += ["--data", captioned]
    if source == "generated":
        words[-1] = "generated"
        words += ["--prompts", str(prompts), "--num-generated", "4", "--generation-steps", "2"]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    original = diffprune.training.trainer.save_checkpoint

    def save_and_die(*given: Any) -> None:
        original(*given)
        raise KeyboardInterrupt

    passes = Passes(monkeypatch)
    with monkeypatch.context() as dying:
        dying.setattr("diffprune.training.trainer.save_checkpoint", save_and_die)
        assert main([*words, "--out", str(tmp_path / "killed")]) != 0
    assert read_json(tmp_path / "killed" / "run.json")["status"] == "running"
    assert list((tmp_path / "killed" / "latents").glob("*.safetensors"))
    assert passes.num > 0
    passes.num = 0
    assert main([*words, "--out", str(tmp_path / "killed")]) == 0
    assert passes.num == 0
    whole, killed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    assert not (tmp_path / "killed" / "latents").exists()


@pytest.mark.parametrize(
    ("stage", "place"),
    [
        ("plan", "planning.planner.choose_units"),
        pytest.param("prune", "planning.planner.choose_units", marks=pytest.mark.slow),
        pytest.param("prune", "stages.prune_stage.copy_model_card", marks=pytest.mark.slow),
        pytest.param("analyze sensitivity", "stages.analyze_sensitivity.score", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_stage_that_is_killed_finds_its_latents_again(
    stage: str, place: str, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = saved("sd", tmp_path)
    words = [*stage.split(), str(model), "--data", "generated", "--prompts", str(prompts), "--generation-steps", "2"]
    if stage == "analyze sensitivity":
        words += ["--num-calibration-images", "3", "--num-timesteps", "2", "--ratios", "0.5", "--by", "block"]
    else:
        words += SCORING
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    passes = Passes(monkeypatch)

    def die(*given: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr(f"diffprune.{place}", die)
        assert main([*words, "--out", str(tmp_path / "killed")]) != 0
    assert passes.num > 0
    passes.num = 0
    assert main([*words, "--out", str(tmp_path / "killed")]) == 0
    assert passes.num == 0
    results = [read_json(tmp_path / name / "run.json")["result"] for name in ("whole", "killed")]
    assert results[0] == results[1]
    files = [sorted(p.relative_to(tmp_path / n) for p in (tmp_path / n).rglob("*")) for n in ("whole", "killed")]
    assert files[0] == files[1]
    assert not (tmp_path / "killed" / "latents").exists()


def test_scoring_asks_neither_text_encoders_nor_the_autoencoder(
    captioned: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    during: list[int] = []
    passes = Passes(monkeypatch)
    original = rounds.choose_units

    def counted(*given: Any) -> Any:
        before = passes.num
        chosen = original(*given)
        during.append(passes.num - before)
        return chosen

    monkeypatch.setattr("diffprune.planning.planner.choose_units", counted)
    diffprune.plan(
        tiny("sd3"), data=captioned, num_calibration_images=2, timestep_stride=10, threshold=0.0, ratio=0.3
    )  # fmt: skip
    assert passes.num > 0
    assert during == [0]


def test_components_go_back_to_where_they_were() -> None:
    moved = nn.Linear(2, 2, device="meta")
    with restored_devices([moved]):
        moved.to_empty(device="cpu")
    assert moved.weight.device.type == "meta"


@pytest.mark.parametrize("source", ["generated", "captions"])
def test_once_latents_are_there_every_component_is_sent_back(
    source: str, captioned: str, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = tiny("sd3")
    components = [c for c in pipeline.components.values() if isinstance(c, nn.Module)]
    options = PlanOptions(
        data=captioned if source == "captions" else "generated", prompts=None if source == "captions" else prompts,
        num_calibration_images=3, generation_steps=2, batch_size=2,
    )  # fmt: skip
    process = process_of(pipeline)
    passes, moves = Passes(monkeypatch), []
    original = nn.Module.to

    def noted(module: nn.Module, *where: Any, **more: Any) -> nn.Module:
        moves.append((module, passes.num))
        return original(module, *where, **more)

    monkeypatch.setattr(nn.Module, "to", noted)
    training_latents(process, open_texts(process, options, 3), options, CPU)
    at_the_end = [module for module, num in moves if num == passes.num]
    assert passes.num > 0
    assert all(any(module is component for module in at_the_end) for component in components)


@pytest.fixture
def told(captioned: str, tmp_path: Path) -> Callable[..., Any]:
    process = process_of(tiny("sd"))

    def make(made_from: dict[str, str] | None = None, **changed: Any) -> Any:
        options = PlanOptions(data=captioned, num_calibration_images=3, batch_size=2).model_copy(update=changed)
        store = LatentCache(tmp_path / "latents", made_from or {})
        return training_latents(process, open_texts(process, options, 3), options, CPU, store)

    return make


def test_latents_that_were_kept_are_those_that_were_made(
    told: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = told()
    assert sorted(path.name for path in (tmp_path / "latents").iterdir()) == [
        "0000000.safetensors", "0000002.safetensors",
    ]  # fmt: skip
    passes = Passes(monkeypatch)
    again = told()
    assert passes.num == 0
    assert torch.equal(first.clean, again.clean)
    assert first.condition.keys() == again.condition.keys()
    assert torch.equal(first.condition["encoder_hidden_states"], again.condition["encoder_hidden_states"])
    assert (first.is_rows, first.convention) == (again.is_rows, again.convention)


def test_latents_of_other_options_or_models_and_damaged_ones_are_made_again(
    told: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = told()
    passes = Passes(monkeypatch)
    other = told(seed=1)
    assert passes.num > 0
    assert not torch.equal(first.clean, other.clean)
    passes.num = 0
    told({"model": "another"}, seed=1)
    assert passes.num > 0
    told()
    file = tmp_path / "latents" / "0000002.safetensors"
    whole = file.read_bytes()
    for damaged in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[: len(whole) // 2], b""):
        file.write_bytes(damaged)
        caplog.clear()
        passes.num = 0
        assert torch.equal(told().clean, first.clean)
        assert "0000002.safetensors, recomputing it" in caplog.text
        assert passes.num > 0
        passes.num = 0
        told()
        assert passes.num == 0


def test_wrong_uses_of_captions_are_refused_before_work(
    captioned: str, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = saved("sd", tmp_path)
    passes = Passes(monkeypatch)
    few = ["--num-calibration-images", "2"]
    cases = [
        (
            ["plan", str(model), "--data", captioned, *few, "--prompts", str(prompts)],
            "because the images have captions",
        ),
        (["plan", str(model), "--data", captioned], "holds 5 images, but calibration needs 128"),
        (["plan", str(model), "--data", "digits", *few], "digits have no captions"),
        (
            ["plan", str(model), "--data", captioned, *few, "--num-frames", "3"],
            "--num-frames: not supported by the call",
        ),
        (["finetune", str(model), "--data", "digits"], "digits have no captions"),
        (["finetune", str(model)], "data: missing"),
        (["finetune", str(model), "--data", captioned, "--prompts", str(prompts)], "because the images have captions"),
        (["finetune", str(model), "--data", captioned, "--preview-every", "2"], "previews of a text-conditioned"),
        (["finetune", str(model), "--data", captioned, "--class-dropout", "0.1"], "--class-dropout: the model is"),
    ]
    for words, message in cases:
        assert main([*words, "--out", str(tmp_path / "out")]) != 0
        assert message in capsys.readouterr().err
    assert passes.num == 0
    assert main(["plan", str(model), "--data", captioned, *few, "--size", "8", "--out", str(tmp_path / "out")]) != 0
    assert "size: 8 makes images of 8x8 pixels, the model has 16x16" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


RECIPE = """
name: captions
model: {model}
data: {data}
plan: {{ratio: 0.4, num_calibration_images: {num}, timestep_stride: 10, batch_size: 2, threshold: 0.0}}
finetune: {{steps: 1, batch_size: 2, tracker: none, distill: true}}
"""


def test_a_recipe_of_captions_is_checked_before_any_work(
    captioned: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    model, passes = saved("sd", tmp_path), Passes(monkeypatch)
    for data, num, message in ((captioned, 9, "holds 5 images, but calibration"), ("generated", 2, "prompts: missing")):
        recipe.write_text(RECIPE.format(model=model, data=data, num=num))
        assert main(["run", str(recipe), "--out", str(out)]) != 0
        assert message in capsys.readouterr().err
    assert passes.num == 0


@pytest.mark.slow
def test_a_recipe_of_captions_is_walked(captioned: str, tmp_path: Path) -> None:
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    recipe.write_text(RECIPE.format(model=saved("sd", tmp_path), data=captioned, num=2))
    assert main(["run", str(recipe), "--out", str(out)]) == 0
    assert (out / "recovered" / "model_index.json").is_file()
