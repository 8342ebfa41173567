"""Public functions in every PyTorch context of the caller: the same results as outside, and the context restored."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline
from PIL import Image

import diffprune
from diffprune.cli.main import main
from diffprune.compute.torch_context import default_torch_context
from diffprune.data.digits import digits
from diffprune.pipelines.builtin import PIPELINES
from tests.helpers.tiny_pipelines import tiny

SMALL: dict[str, Any] = {"num_calibration_images": 4, "timestep_stride": 250, "ratio": 0.5}
TRAINING: dict[str, Any] = {"steps": 2, "batch_size": 4, "mixed_precision": "no"}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


CONTEXTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "meta": lambda: torch.device("meta"),
}


def settings() -> tuple[Any, ...]:
    return (
        torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"), torch.get_default_device(),
    )  # fmt: skip


def results(folder: Path) -> dict[str, Any]:
    """Return what each public function computes from the built-in pipeline, which is loaded here."""
    images: list[Image.Image] = digits()[0][:12]
    pipeline = diffprune.load_pipeline("digits")
    plan = diffprune.plan(pipeline, data=images, **SMALL)
    small = diffprune.prune(pipeline, plan, data=images, num_compensation_images=8)
    recovered = diffprune.finetune(small, pipeline, data=images, **TRAINING)
    paths = diffprune.sample(recovered, folder, num=2, steps=2)
    return {
        "groups": len(diffprune.find_groups(pipeline.unet)),
        "plan": {name: group.kept for name, group in plan.groups.items()},
        "pruned": small.unet.state_dict(),
        "finetuned": recovered.unet.state_dict(),
        "images": [path.read_bytes() for path in paths],
        "metrics": dict(diffprune.evaluate(paths, images[:2], metrics=["ssim", "frechet_distance"])),
    }


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return results(tmp_path_factory.mktemp("outside") / "images")


@pytest.mark.parametrize("names", ["float16 no_grad", "bfloat16 inference_mode", "float64 autocast meta"])
def test_public_functions_return_the_same_in_every_context(
    names: str, expected: dict[str, Any], tmp_path: Path
) -> None:
    with ExitStack() as stack:
        for name in names.split():
            stack.enter_context(CONTEXTS[name]())
        before = settings()
        actual = results(tmp_path / "images")
        assert settings() == before
    for weights in ("pruned", "finetuned"):
        wanted, got = expected[weights], actual.pop(weights)
        assert wanted.keys() == got.keys()
        assert all(torch.equal(wanted[key], got[key]) for key in wanted), weights
    assert actual == {key: expected[key] for key in actual}


@pytest.mark.parametrize("name", CONTEXTS)
def test_the_context_of_the_caller_is_restored_after_an_error(name: str) -> None:
    with CONTEXTS[name]():
        before = settings()
        with pytest.raises(diffprune.OptionError), default_torch_context():
            assert settings() == (torch.float32, True, False, False, before[4], torch.device("cpu"))
            raise diffprune.OptionError("wrong")
        assert settings() == before
        with pytest.raises(diffprune.OptionError, match="ratoi"):
            diffprune.plan("digits", ratoi=0.5)
        assert settings() == before


def test_commands_run_in_the_default_context(tmp_path: Path) -> None:
    options = "--ratio 0.5 --num-calibration-images 4 --timestep-stride 250 --num-compensation-images 8"
    with torch.inference_mode(), default_dtype(torch.float64):
        assert main(["prune", "digits", "--data", "digits", *options.split(), "--out", str(tmp_path / "pruned")]) == 0
    assert diffprune.load_pipeline(tmp_path / "pruned").dtype == torch.float32


def test_weights_made_in_inference_mode_are_copied() -> None:
    images = digits()[0][:12]
    with torch.inference_mode():
        pipeline = DDPMPipeline.from_pretrained(PIPELINES["digits"])
    assert next(pipeline.unet.parameters()).is_inference()
    before = pipeline.unet
    plan = diffprune.plan(pipeline, data=images, **SMALL)
    small = diffprune.prune(pipeline, plan, data=images, num_compensation_images=8)
    recovered = diffprune.finetune(small, pipeline, data=images, **TRAINING)
    assert len(diffprune.find_groups(pipeline.unet)) == len(plan.groups)
    bare = diffprune.prune(pipeline.unet, criterion="magnitude", ratio=0.5)
    assert not any(weight.is_inference() for net in (recovered.unet, bare) for weight in net.parameters())
    assert pipeline.unet is before
    assert next(before.parameters()).is_inference()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_16_bit_models_are_pruned_finetuned_and_sampled(
    dtype: torch.dtype, mixed_precision: str, tmp_path: Path
) -> None:
    images, precision = digits()[0][:12], {"mixed_precision": mixed_precision}
    pipeline = diffprune.load_pipeline("digits").to(dtype)
    small = diffprune.prune(pipeline, data=images, num_compensation_images=8, **SMALL, **precision)
    recovered = diffprune.finetune(small, pipeline, data=images, **{**TRAINING, **precision})
    for model in (pipeline, small, recovered):
        assert {weight.dtype for weight in model.unet.parameters()} == {dtype}
    assert small.unet.pruning_provenance[-1]["compensation"]["helped"]
    assert "forward" not in vars(recovered.unet)
    assert len(diffprune.sample(recovered, tmp_path / "images", num=2, steps=2, **precision)) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_pipelines_with_an_autoencoder_are_sampled_under_autocast(dtype: torch.dtype, tmp_path: Path) -> None:
    options: dict[str, Any] = {"num": 1, "steps": 1, "height": 16, "width": 16, "mixed_precision": "bf16"}
    paths = diffprune.sample(tiny("sd").to(dtype), tmp_path / "images", prompts=["a cat"], **options)
    with Image.open(paths[0]) as image:
        assert image.size == (16, 16)
