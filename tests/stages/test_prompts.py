"""Whole text- and class-conditioned pipelines: scored on what they draw themselves, pruned, sampled, reloaded."""

from pathlib import Path

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms.v2.functional import pil_to_tensor

import diffprune
from diffprune.calibration.text_latents import calibrate_on_texts
from diffprune.cli.main import main
from diffprune.options import PlanOptions
from diffprune.pipelines.denoiser_access import denoiser_of
from diffprune.pipelines.diffusion import process_of
from diffprune.runs.atomic_files import read_json
from diffprune.sampling.sampler import image_generator
from tests.helpers.tiny_pipelines import PIPELINES, SIZES, tiny

FLOW = "FlowMatchEulerDiscreteScheduler"
LINES = ("a red cat", "blue", "a dog")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(LINES) + "\n")
    return file


def saved(name: str, folder: Path) -> Path:
    tiny(name).save_pretrained(folder / name)
    return folder / name


def words_for(name: str, prompts: Path) -> list[str]:
    return [] if name == "dit" else ["--prompts", str(prompts), *SIZES[name]]


def pixels(folder: Path) -> torch.Tensor:
    return torch.stack([pil_to_tensor(Image.open(path)) for path in sorted(folder.glob("*.png"))]).int()


KINDS = ("sd", "sd3", "ltx", "dit")
"""A UNet, a flow, a video and a model of classes; the slow tier takes all pipelines."""


@pytest.mark.parametrize(
    "name", [name if name in KINDS else pytest.param(name, marks=pytest.mark.slow) for name in PIPELINES]
)
def test_a_pipeline_is_scored_pruned_finetuned_sampled_and_reloaded(name: str, prompts: Path, tmp_path: Path) -> None:
    model, told = saved(name, tmp_path), words_for(name, prompts)
    scoring = ["--data", "generated", "--num-calibration-images", "2", "--generation-steps", "2"]
    scoring += ["--timestep-stride", "10", "--ratio", "0.4", "--threshold", "0"]
    assert main(["prune", str(model), *scoring, *told, "--out", str(tmp_path / "small")]) == 0
    summary = read_json(tmp_path / "small" / "run.json")["result"]
    assert summary["criterion"] == "diff-pruning"
    assert summary["params_after"] < 0.9 * summary["params_before"]
    model, out = tmp_path / "small", tmp_path / "images"
    learning = ["--data", "generated", "--num-generated", "4", "--generation-steps", "2", *told]
    if name == "dit":
        learning = ["--data", "digits"]
    tuning = ["--steps", "2", "--batch-size", "4", "--accumulation-steps", "2", "--teacher", str(tmp_path / name)]
    assert main(["finetune", str(model), *learning, *tuning, "--out", str(tmp_path / "recovered")]) == 0
    model = tmp_path / "recovered"
    drawing = ["--num", "3", "--steps", "2", "--batch-size", "2", *told]
    assert main(["sample", str(model), *drawing, "--out", str(out)]) == 0
    assert pixels(out).shape[0] == 3
    with torch.random.fork_rng():
        again = DiffusionPipeline.from_pretrained(model)
    assert type(denoiser_of(again)).__module__ == "diffprune"
    assert type(again) is PIPELINES[name].__annotations__["return"]


@pytest.mark.parametrize("criterion", ["bypass", "cosine"])
def test_blocks_of_a_text_conditioned_pipeline_are_scored_and_what_is_left_is_stock(
    criterion: str, prompts: Path, tmp_path: Path
) -> None:
    model = saved("sd3", tmp_path)
    words = ["--kinds", "blocks", "--block-criterion", criterion, "--block-timesteps", "2", "--ratio", "0.3"]
    words += ["--data", "generated", "--num-calibration-images", "2", "--generation-steps", "2"]
    assert main(["prune", str(model), *words, "--prompts", str(prompts), "--out", str(tmp_path / "out")]) == 0
    plan = diffprune.read_plan(tmp_path / "out" / "plan.json")
    assert plan.criterion == criterion
    assert len(plan.groups["transformer_blocks"].kept) == 2
    assert 2 in plan.groups["transformer_blocks"].kept, "the last block of SD3 has to stay"
    assert read_json(tmp_path / "out" / "model_index.json")["transformer"] == ["diffusers", "SD3Transformer2DModel"]
    assert not (tmp_path / "out" / "transformer" / "pruning.json").exists()


def test_blocks_of_all_attentions_and_the_middle_of_a_unet_compete(prompts: Path, tmp_path: Path) -> None:
    model, out = saved("sdxl", tmp_path), tmp_path / "out"
    words = ["--kinds", "blocks", "--ranking", "global", "--block-timesteps", "2", "--ratio", "0.5"]
    words += ["--data", "generated", "--num-calibration-images", "2", "--generation-steps", "2"]
    assert main(["prune", str(model), *words, *words_for("sdxl", prompts), "--out", str(out)]) == 0
    groups = diffprune.read_plan(out / "plan.json").groups
    assert sum(units.num_units for units in groups.values()) == 4
    assert sum(len(units.kept) for units in groups.values()) == 2
    assert read_json(out / "model_index.json")["unet"] == ["diffusers", "UNet2DConditionModel"]
    drawing = ["--num", "1", "--steps", "2", *words_for("sdxl", prompts)]
    assert main(["sample", str(out), *drawing, "--out", str(tmp_path / "images")]) == 0


def test_image_i_draws_prompt_i_in_turn_whatever_the_batch_size(prompts: Path, tmp_path: Path) -> None:
    pipeline = tiny("sd")
    drawn = []
    for size in (1, 4):
        diffprune.sample(pipeline, tmp_path / str(size), num=4, steps=2, batch_size=size, prompts=prompts)
        drawn.append(pixels(tmp_path / str(size)))
    ones, fours = drawn
    assert int((ones - fours).abs().max()) <= 1
    expected = pipeline(LINES[1], num_inference_steps=2, generator=image_generator(0, 1), output_type="pt").images
    assert int(((expected[0] * 255).round().int() - ones[1]).abs().max()) <= 1


def test_what_is_recorded_is_what_the_pipeline_computes(prompts: Path) -> None:
    """At the last timestep the recorded conditions and conventions give the loss that noise and latents ask for."""
    for name, scale in (("sd", 1.0), ("flux", 0.001)):
        size = {"height": 16, "width": 16} if name == "flux" else {}
        pipeline = tiny(name)
        options = PlanOptions(data="generated", prompts=prompts, num_calibration_images=3, generation_steps=2, **size)
        calibration = calibrate_on_texts(process_of(pipeline), options, torch.device("cpu"))
        assert calibration.convention.scale == pytest.approx(scale)
        assert calibration.num_timesteps == 20
        first, second = calibration.batches(19, 2)
        assert (len(first.noisy), len(second.noisy)) == (2, 1)
        texts = pipeline.encode_prompt(list(LINES), *(["cpu", 1, False] if name == "sd" else [None, "cpu"]))[0]
        told = torch.cat([batch.condition["encoder_hidden_states"] for batch in (first, second)])
        assert torch.allclose(told, texts, atol=1e-3)
        if name == "flux":
            assert torch.allclose(first.noisy, calibration.noise[:2])
            assert torch.allclose(first.target, calibration.noise[:2] - calibration.clean[:2])
            assert float(first.timesteps[0]) == pytest.approx(0.02)
            assert first.condition["img_ids"].shape == second.condition["img_ids"].shape


def test_stochastic_schedulers_draw_from_the_generators_of_the_images(prompts: Path) -> None:
    pipeline = tiny("sd")
    pipeline.register_modules(scheduler=EulerAncestralDiscreteScheduler(num_train_timesteps=20))
    options = PlanOptions(data="generated", prompts=prompts, num_calibration_images=3, generation_steps=3)
    one, three = (
        calibrate_on_texts(process_of(pipeline), options.model_copy(update={"batch_size": n}), torch.device("cpu"))
        for n in (1, 3)
    )
    assert torch.allclose(one.clean, three.clean, atol=1e-3)


def test_texts_that_are_padded_to_the_longest_of_a_batch_fit_together_in_any_batch_size(prompts: Path) -> None:
    pipeline = tiny("qwen")
    options = PlanOptions(
        data="generated", prompts=prompts, num_calibration_images=3, generation_steps=2, height=16, width=16
    )  # fmt: skip
    for size in (1, 2, 3):
        sized = options.model_copy(update={"batch_size": size})
        calibration = calibrate_on_texts(process_of(pipeline), sized, torch.device("cpu"))
        told = calibration.condition
        with torch.no_grad():
            texts, mask = pipeline.encode_prompt(list(LINES), device="cpu")
        assert torch.equal(told["encoder_hidden_states_mask"], mask)
        assert torch.allclose(told["encoder_hidden_states"], texts, atol=1e-4)
        assert len(set(mask.sum(1).tolist())) > 1
        assert len(next(calibration.batches(5, 2)).condition["img_shapes"]) == 2


def test_guidance_that_is_told_is_that_of_the_latents(prompts: Path) -> None:
    size: dict[str, object] = {"height": 16, "width": 16, "num_calibration_images": 2, "generation_steps": 2}
    for guidance, expected in ((None, 3.5), (2.0, 2.0)):
        options = PlanOptions(data="generated", prompts=prompts, generation_guidance=guidance, **size)
        calibration = calibrate_on_texts(process_of(tiny("flux")), options, torch.device("cpu"))
        assert calibration.condition["guidance"].tolist() == [expected] * 2


def test_a_pipeline_stored_in_bf16_is_computed_with_in_fp32_and_stored_so_again(prompts: Path, tmp_path: Path) -> None:
    tiny("sd3").to(torch.bfloat16).save_pretrained(tmp_path / "model")
    scoring = ["--data", "generated", "--num-calibration-images", "2", "--generation-steps", "2", "--threshold", "0"]
    scoring += ["--timestep-stride", "19", "--prompts", str(prompts)]
    assert main(["prune", str(tmp_path / "model"), *scoring, "--out", str(tmp_path / "small")]) == 0
    drawing = ["--num", "1", "--steps", "2", "--prompts", str(prompts)]
    assert main(["sample", str(tmp_path / "small"), *drawing, "--out", str(tmp_path / "images")]) == 0
    weights = load_file(tmp_path / "small" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}


def test_wrong_uses_of_prompts_are_refused_before_work(
    prompts: Path, pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = saved("sd", tmp_path)
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    cases = [
        (["sample", str(model)], "prompts: missing"),
        (
            ["sample", str(model), "--prompts", str(prompts), "--grid", "quad"],
            "grid: not supported by the call of Stable",
        ),
        (["sample", str(model), "--prompts", str(empty)], "holds no prompts"),
        (["sample", str(model), "--prompts", str(tmp_path / "nowhere")], "cannot read the prompts"),
        (["sample", str(pipeline_folder), "--prompts", str(prompts)], "not conditioned on text"),
        (
            ["sample", str(model), "--prompts", str(prompts), "--num-frames", "4"],
            "--num-frames: not supported by Stable",
        ),
        (["finetune", str(model), "--data", "digits", "--steps", "1"], "needs a text for each image"),
        (["finetune", str(model), "--data", "generated", "--steps", "1"], "prompts: missing"),
        (["finetune", str(pipeline_folder), "--data", "generated", "--steps", "1"], "serve text-conditioned models"),
        (["sample", str(model), "--prompts", str(prompts), "--scheduler", FLOW], "for flows"),
        (["finetune", str(pipeline_folder), "--teacher", str(model), "--data", "digits"], "class or inputs differ"),
        (["plan", str(model), "--data", "generated"], "prompts: missing"),
        (["plan", str(model), "--data", "digits", "--prompts", str(prompts)], "needs a text for each image"),
    ]
    for words, message in cases:
        assert main([*words, "--out", str(tmp_path / "out")]) != 0
        assert message in capsys.readouterr().err
        assert not list((tmp_path / "out").glob("*.png"))
    blind = tiny("sd")
    blind.register_modules(text_encoder=None)
    with pytest.raises(diffprune.ModelError, match="has no text encoder"):
        diffprune.sample(blind, tmp_path / "out", num=1, steps=1, prompts=prompts)
