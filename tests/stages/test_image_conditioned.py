"""Pipelines that draw from images: what they join to their latents is part of what the denoiser is told."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    LDMSuperResolutionPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusionControlNetPipeline,
    UNet2DModel,
    VQModel,
    WanImageToVideoPipeline,
)
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL import Image

import diffprune
from diffprune.calibration.calibration_set import Calibration
from diffprune.calibration.latent_cache import LatentCache
from diffprune.calibration.text_latents import calibrate_on_texts, training_latents
from diffprune.calibration.texts import open_texts
from diffprune.cli.main import main
from diffprune.options import PlanOptions
from diffprune.pipelines.conditioning import JOINED
from diffprune.pipelines.denoiser_access import denoiser_of
from diffprune.pipelines.denoiser_interface import joined_along
from diffprune.pipelines.diffusion import process_of
from diffprune.pipelines.predict import predict
from diffprune.runs.atomic_files import read_json
from tests.helpers.tiny_pipelines import FROM_IMAGES, SIZES, tiny

# one image for several prompts: diffusers duplicates it and warns that it will not in a later version
pytestmark = pytest.mark.filterwarnings("ignore:You have passed .* text prompts:FutureWarning")

CPU = torch.device("cpu")
LINES = (("a red cat", "a.png"), ("blue", "a.png"), ("a dog", "b.png"))
MASKED = ("inpaint", "fill")


def picture(seed: int, side: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


@pytest.fixture
def given(tmp_path: Path) -> Path:
    folder = tmp_path / "given"
    folder.mkdir()
    picture(0).save(folder / "a.png")
    picture(1).save(folder / "b.png")
    mask = np.zeros((16, 16), np.uint8)
    mask[:, 8:] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    return folder


def asked(name: str, folder: Path, **more: str) -> Path:
    mask = {"mask_image_file_name": "mask.png"} if name in MASKED else {}
    rows = [{"text": text, "image_file_name": file, **mask, **more} for text, file in LINES]
    file = folder / "prompts.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


def size_of(name: str) -> dict[str, int]:
    words = SIZES[name]
    return {key[2:].replace("-", "_"): int(value) for key, value in zip(words[::2], words[1::2], strict=True)}


def options_for(name: str, prompts: Path) -> PlanOptions:
    return PlanOptions(
        data="generated", prompts=prompts, num_calibration_images=3, generation_steps=2, batch_size=2, **size_of(name)
    )


def calibrated(name: str, folder: Path) -> tuple[Any, Calibration]:
    pipeline = tiny(name)
    return pipeline, calibrate_on_texts(process_of(pipeline), options_for(name, asked(name, folder)), CPU)


@pytest.mark.parametrize("name", FROM_IMAGES)
def test_what_is_joined_to_the_latents_is_recorded_and_joined_again(name: str, given: Path) -> None:
    pipeline, calibration = calibrated(name, given)
    part = calibration.condition[JOINED]["part"]
    if name != "wan_i2v":  # a video autoencoder's latents do not tell two images of noise far enough apart
        assert not torch.allclose(part[0], part[2], atol=1e-3)
    assert torch.equal(part[0], part[1])
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    step = pipeline.scheduler.step

    def note(model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append((model_output, torch.as_tensor(timestep), sample))
        return step(model_output, timestep, sample, *args, **kwargs)

    pipeline.scheduler.step = note
    mask = {"mask_image": Image.open(given / "mask.png")} if name in MASKED else {}
    unguided = {} if name in ("fill", "kontext") else {"guidance_scale": 1.0}
    exact = {"max_area": 256, "_auto_resize": False} if name == "kontext" else {}
    pipeline(
        prompt=["a dog"], image=Image.open(given / "b.png"), num_inference_steps=3, output_type="latent",
        generator=[torch.Generator()], **unguided, **mask, **size_of(name), **exact,
    )  # fmt: skip
    for output, timestep, sample in seen:
        time = calibration.convention.denoiser_timesteps(timestep.reshape(1))
        with torch.no_grad():
            again = predict(denoiser_of(pipeline), sample, time, calibration.conditioning([2]))
        assert torch.allclose(again * calibration.convention.sign, output, atol=1e-4)


def test_an_inpainting_model_is_told_its_mask_and_what_the_mask_leaves(given: Path) -> None:
    _, calibration = calibrated("inpaint", given)
    mask, rest = calibration.condition[JOINED]["part"].split([1, 4], dim=1)
    expected = torch.zeros(8, 8)
    expected[:, 4:] = 1
    assert torch.equal(mask[0, 0], expected)
    kept = rest[..., :2]  # beyond the reach of the mask: what is left of each image
    assert float((kept[0] - kept[2]).abs().max()) > 1e-2


@pytest.mark.parametrize(
    "name", [name if name == "inpaint" else pytest.param(name, marks=pytest.mark.slow) for name in FROM_IMAGES]
)
def test_a_pipeline_that_draws_from_images_is_pruned_recovered_sampled_and_reloaded(
    name: str, given: Path, tmp_path: Path
) -> None:
    tiny(name).save_pretrained(tmp_path / name)
    told = ["--prompts", str(asked(name, given)), *SIZES[name], "--data", "generated", "--generation-steps", "2"]
    scoring = ["--num-calibration-images", "3", "--timestep-stride", "10", "--ratio", "0.4", "--threshold", "0"]
    assert main(["prune", str(tmp_path / name), *told, *scoring, "--out", str(tmp_path / "small")]) == 0
    result = read_json(tmp_path / "small" / "run.json")["result"]
    assert result["params_after"] < 0.9 * result["params_before"]
    assert result["compensation"]["output_error_after"] < result["compensation"]["output_error_before"]
    tuning = ["--steps", "2", "--batch-size", "2", "--num-generated", "3", "--teacher", str(tmp_path / name)]
    assert main(["finetune", str(tmp_path / "small"), *told, *tuning, "--out", str(tmp_path / "recovered")]) == 0
    drawing = ["--num", "3", "--steps", "2", "--batch-size", "2", "--prompts", str(given / "prompts.jsonl")]
    assert main(["sample", str(tmp_path / "recovered"), *drawing, *SIZES[name], "--out", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == 3
    with torch.random.fork_rng():
        again = DiffusionPipeline.from_pretrained(tmp_path / "recovered")
    assert type(denoiser_of(again)).__module__ == "diffprune"
    assert type(again) is FROM_IMAGES[name].__annotations__["return"]


def test_images_with_captions_say_which_image_they_are_drawn_from(given: Path) -> None:
    """A folder of targets, with the sources beside them: the sources are no targets."""
    picture(2).save(given / "edited.png")
    rows = [{"file_name": "edited.png", "text": "a cat", "image_file_name": "a.png"}]
    (given / "mask.png").unlink()
    (given / "b.png").unlink()
    (given / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    pipeline = tiny("pix2pix")
    process = process_of(pipeline)
    options = PlanOptions(data=str(given), num_calibration_images=1)
    calibration = calibrate_on_texts(process, options, CPU)
    pixels = pipeline.image_processor.preprocess(Image.open(given / "edited.png"))
    source = pipeline.image_processor.preprocess(Image.open(given / "a.png"))
    with torch.no_grad():
        target = pipeline.vae.encode(pixels).latent_dist.mode() * pipeline.vae.config.scaling_factor
        joined = pipeline.vae.encode(source).latent_dist.mode()
    assert torch.allclose(calibration.clean, target, atol=1e-4)
    assert torch.allclose(calibration.condition[JOINED]["part"], joined, atol=1e-4)


def test_latents_on_disk_are_made_again_for_another_image_of_the_same_name(given: Path, tmp_path: Path) -> None:
    pipeline, options = tiny("pix2pix"), options_for("pix2pix", asked("pix2pix", given))
    process, store = process_of(pipeline), LatentCache(tmp_path / "store", {})
    first = training_latents(process, open_texts(process, options, 3), options, CPU, store)
    again = training_latents(process, open_texts(process, options, 3), options, CPU, store)
    picture(7).save(given / "a.png")
    other = training_latents(process, open_texts(process, options, 3), options, CPU, store)
    parts = [found.condition[JOINED]["part"] for found in (first, again, other)]
    assert torch.equal(parts[0], parts[1])
    assert not torch.equal(parts[1][0], parts[2][0])
    assert torch.equal(parts[1][2], parts[2][2])


def test_a_stage_notices_that_an_image_that_it_draws_from_has_changed(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny("pix2pix").save_pretrained(tmp_path / "model")
    told = ["--prompts", str(asked("pix2pix", given)), "--batch-size", "2"]
    scoring = ["--data", "generated", "--generation-steps", "1", "--num-calibration-images", "2", "--no-compensate"]
    tuning = ["--data", "generated", "--generation-steps", "1", "--num-generated", "2", "--steps", "1"]
    stages = {
        "sample": (*told, "--num", "2", "--steps", "1"),
        "prune": (*told, *scoring, "--timestep-stride", "20"),
        "finetune": (*told, *tuning),
    }
    plan = ["plan", str(tmp_path / "model"), *told, *scoring[:-1], "--timestep-stride", "20"]
    assert main([*plan, "--out", str(tmp_path / "plan.json")]) == 0
    for change in (False, True):
        if change:
            picture(7).save(given / "a.png")
        for stage, words in stages.items():
            assert main([stage, str(tmp_path / "model"), *words, "--out", str(tmp_path / stage)]) == int(change)
            assert ("a.png has changed since" in capsys.readouterr().err) == change
    assert main([*plan, "--out", str(tmp_path / "plan.json")]) == 1
    assert "a.png has changed since" in capsys.readouterr().err


@pytest.mark.slow
def test_compensation_by_a_plan_notices_that_an_image_has_changed(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = tiny("pix2pix")
    pipeline.save_pretrained(tmp_path / "model")
    plan = diffprune.plan(
        pipeline, criterion="magnitude", data="generated", prompts=asked("pix2pix", given), num_calibration_images=2,
        generation_steps=1,
    )  # fmt: skip
    plan.save(tmp_path / "plan.json")
    words = ["prune", str(tmp_path / "model"), "--plan", str(tmp_path / "plan.json"), "--out", str(tmp_path / "small")]
    assert main(words) == 0
    picture(7).save(given / "a.png")
    assert main(words) == 1
    assert "a.png has changed since" in capsys.readouterr().err


def test_images_of_several_sizes_are_drawn_from_one_by_one_and_refused_in_a_batch(given: Path, tmp_path: Path) -> None:
    pipeline, prompts = tiny("pix2pix"), asked("pix2pix", given)
    picture(1, side=32).save(given / "b.png")
    with pytest.raises(diffprune.DataError, match=r"\(3, 16, 16\), \(3, 32, 32\).*images of one size.*batch_size 1"):
        diffprune.sample(pipeline, tmp_path / "batch", num=3, steps=1, batch_size=3, prompts=prompts)
    drawn = diffprune.sample(pipeline, tmp_path / "single", num=3, steps=1, batch_size=1, prompts=prompts)
    sizes = []
    for path in drawn:
        with Image.open(path) as image:
            sizes.append(image.size)
    assert sizes == [(16, 16), (16, 16), (32, 32)]
    for batch_size, kind in ((3, diffprune.DataError), (1, diffprune.ModelError)):
        options = options_for("pix2pix", prompts).model_copy(update={"batch_size": batch_size})
        with pytest.raises(kind, match="images of one size"):
            calibrate_on_texts(process_of(pipeline), options, CPU)


def test_prompts_that_do_not_fit_are_refused_before_work(given: Path, tmp_path: Path) -> None:
    pipeline = tiny("inpaint")
    plain = tmp_path / "plain.txt"
    plain.write_text("a cat\n")
    unmasked = given / "unmasked.jsonl"
    unmasked.write_text(asked("kontext", given).read_text())
    wrong = [
        (plain, diffprune.OptionError, r"needs input images .image, mask_image.*image_file_name"),
        (unmasked, diffprune.OptionError, r"needs input images.*image_file_name.*mask_image_file_name"),
        (asked("inpaint", given, depth_file_name="a.png"), diffprune.OptionError, "takes no depth"),
    ]
    for prompts, kind, message in wrong:
        for stage in (
            lambda prompts: diffprune.sample(pipeline, tmp_path / "out", num=1, steps=1, prompts=prompts),
            lambda prompts: diffprune.plan(pipeline, data="generated", prompts=prompts, num_calibration_images=1),
            lambda prompts: diffprune.finetune(pipeline, data="generated", prompts=prompts, steps=1, num_generated=1),
        ):
            with pytest.raises(kind, match=message):
                stage(prompts)
    rows = tmp_path / "rows.jsonl"
    for text, message in (
        (
            '{"text": "a cat", "image_file_name": "missing.png"}',
            r"line 1 .* names the image 'missing.png', which is not",
        ),
        ('{"image_file_name": "a.png"}', r"line 1 .* has no text"),
        ('["a cat"]', r"line 1 .* is a list, expected a JSON object"),
        ('{"text": ', r"line 1 .* is not JSON"),
    ):
        rows.write_text(text + "\n")
        with pytest.raises(diffprune.DataError, match=message):
            diffprune.sample(pipeline, tmp_path / "out", num=1, steps=1, prompts=rows)
    (given / "a.png").write_bytes(b"no image")
    with pytest.raises(diffprune.DataError, match=r"cannot read the image .*a.png"):
        diffprune.sample(pipeline, tmp_path / "out", num=1, steps=1, prompts=asked("inpaint", given))
    assert not list((tmp_path / "out").glob("*.png"))


def test_a_pipeline_whose_conditions_follow_the_steps_is_refused(given: Path) -> None:
    """A ControlNet looks at the noisy image: what it tells at one step is wrong at another."""
    components = tiny("sd").components
    with torch.random.fork_rng():
        control = ControlNetModel.from_unet(components["unet"], conditioning_embedding_out_channels=(4, 4)).eval()
    with torch.no_grad():  # as they are after training: new ones are zero, and tell the same at each step
        for convolution in control.controlnet_down_blocks:
            convolution.weight.fill_(0.1)
    pipeline = StableDiffusionControlNetPipeline(**components, controlnet=control, requires_safety_checker=False)
    with pytest.raises(diffprune.ModelError, match="changes its conditioning between steps"):
        calibrate_on_texts(process_of(pipeline), options_for("inpaint", asked("kontext", given)), CPU)


def test_a_pipeline_that_tells_its_denoiser_several_times_at_once_is_refused(given: Path) -> None:
    """Wan 2.2 TI2V puts the given frame in place of the first one of x_t, and says that it is at time 0."""
    names = ("tokenizer", "text_encoder", "vae", "transformer", "scheduler")
    components = {name: part for name, part in tiny("wan").components.items() if name in names}
    pipeline = WanImageToVideoPipeline(**components, expand_timesteps=True)
    with pytest.raises(diffprune.ModelError, match="different timesteps in one forward pass"):
        calibrate_on_texts(process_of(pipeline), options_for("wan_i2v", asked("wan_i2v", given)), CPU)


def test_what_takes_the_place_of_a_part_of_the_latents_is_refused() -> None:
    sample = torch.randn(1, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    changed = sample.clone()
    changed[:, :, 0] = 1.0
    assert joined_along(2.0 * sample, sample) is None
    with pytest.raises(diffprune.ModelError, match=r"neither x_t .* nor x_t with a tensor"):
        joined_along(changed, sample)


def test_a_pipeline_that_takes_one_prompt_an_image_is_refused(given: Path) -> None:
    pipeline = StableDiffusion3Img2ImgPipeline(**tiny("sd3").components)
    with pytest.raises(diffprune.ModelError, match="does not support several prompts with these images"):
        calibrate_on_texts(process_of(pipeline), options_for("pix2pix", asked("pix2pix", given)), CPU)


def test_pipelines_without_text_are_refused_but_for_criteria_that_look_at_no_images() -> None:
    with torch.random.fork_rng():
        unet = UNet2DModel(
            sample_size=8, in_channels=6, out_channels=3, block_out_channels=(8, 16), layers_per_block=1,
            norm_num_groups=4, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        )  # fmt: skip
        autoencoder = VQModel(block_out_channels=(8,), norm_num_groups=4)
    pipeline = LDMSuperResolutionPipeline(autoencoder, unet, DDIMScheduler())
    with pytest.raises(diffprune.ModelError, match=r"conditioned on images without a text.*random or magnitude"):
        diffprune.plan(pipeline, data="digits", num_calibration_images=2)
    with pytest.raises(diffprune.ModelError, match="is conditioned on images without a text"):
        diffprune.finetune(pipeline, data="digits", steps=1)
    plan = diffprune.plan(pipeline, criterion="magnitude", ratio=0.4)
    assert plan.after.params < plan.before.params
    assert type(diffprune.prune(pipeline, plan)) is type(pipeline)
