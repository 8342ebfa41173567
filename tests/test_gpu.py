"""On a GPU the stages choose, train and draw what they do on the CPU."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.v2.functional import pil_to_tensor

import diffprune
from diffprune.calibration.calibration_set import images_for
from diffprune.calibration.text_latents import calibrate_on_texts
from diffprune.options import FinetuneOptions, PlanOptions
from diffprune.pipelines.diffusion import process_of
from diffprune.training.trainer import train_denoiser
from tests.helpers.tiny_pipelines import tiny

pytestmark = pytest.mark.gpu


def kept(plan: diffprune.Plan) -> set[tuple[str, int]]:
    return {(name, unit) for name, units in plan.groups.items() for unit in units.kept}


def test_scores_choose_the_units_that_the_cpu_chooses() -> None:
    pipeline = diffprune.load_pipeline("digits")
    options = {"data": "digits", "num_calibration_images": 32, "timestep_stride": 20}
    cpu, gpu = (kept(diffprune.plan(pipeline, device=device, **options)) for device in ("cpu", "cuda"))
    assert len(cpu & gpu) / len(cpu | gpu) > 0.97
    assert next(pipeline.unet.parameters()).device.type == "cpu"


def test_images_are_those_of_the_cpu(tmp_path: Path) -> None:
    pipeline = diffprune.load_pipeline("digits")
    drawn = []
    for device in ("cpu", "cuda"):
        paths = diffprune.sample(pipeline, tmp_path / device, num=8, steps=10, grid="quad", device=device)
        drawn.append(torch.stack([pil_to_tensor(Image.open(path)).float() for path in paths]))
    assert (drawn[0] - drawn[1]).abs().mean() < 2


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_finetuning_lowers_the_loss(precision: str) -> None:
    pipeline = diffprune.load_pipeline("digits")
    small = diffprune.prune(pipeline, diffprune.plan(pipeline, criterion="magnitude", ratio=0.4))
    options = FinetuneOptions(
        data="digits", steps=60, batch_size=64, learning_rate=1e-3, mixed_precision=precision, device="cuda", flip=False
    )
    images = images_for(process_of(small), "digits")
    _, history = train_denoiser(small.unet, process_of(small), images, options, teacher=pipeline.unet)
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]


def test_text_encoders_and_autoencoder_leave_the_gpu_before_scoring(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red cat\nblue\n")
    pipeline = tiny("sd3")
    options = PlanOptions(
        data="generated", prompts=tmp_path / "prompts.txt", num_calibration_images=2, generation_steps=2
    )  # fmt: skip
    calibration = calibrate_on_texts(process_of(pipeline), options, torch.device("cuda"))
    assert calibration.clean.device.type == "cuda"
    assert {
        p.device.type for c in pipeline.components.values() if isinstance(c, nn.Module) for p in c.parameters()
    } == {"cpu"}
    next(calibration.batches(10, 2)).noisy.sum().item()


@pytest.mark.parametrize("method", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_a_pruned_pipeline_that_is_offloaded_draws_the_same(method: str) -> None:
    pipeline = diffprune.load_pipeline("digits")
    small = diffprune.prune(pipeline, diffprune.plan(pipeline, criterion="magnitude", ratio=0.4))

    def drawn() -> torch.Tensor:
        images = small(generator=torch.Generator().manual_seed(0), num_inference_steps=4, output_type="np").images
        return torch.from_numpy(images)

    small.to("cuda")
    whole = drawn()
    small.to("cpu")
    getattr(small, method)()
    torch.testing.assert_close(drawn(), whole, rtol=0, atol=1e-3)
