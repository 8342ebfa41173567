"""Folders in half precision: scored and trained in float32, left in the dtype they came in."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import diffprune
from diffprune.cli.main import main
from diffprune.options import PlanOptions
from diffprune.pipelines.stored_dtype import load_as_stored, stored_dtypes
from diffprune.stages.plan_stage import plan_model
from tests.conftest import tiny_pipeline
from tests.helpers.tiny_pipelines import tiny

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
TINY = ["--num-calibration-images", "2", "--timestep-stride", "10", "--device", "cpu"]


def saved(folder: Path, dtype: torch.dtype) -> Path:
    """The tiny pipeline, saved in a dtype by diffusers alone."""
    tiny_pipeline().to(dtype).save_pretrained(folder)
    return folder


def dtypes(folder: Path) -> set[torch.dtype]:
    return {value.dtype for value in load_file(folder / WEIGHTS).values()}


@pytest.mark.parametrize("dtype", [pytest.param(torch.float16, marks=pytest.mark.slow), torch.bfloat16])
def test_prune_and_finetune_leave_the_dtype_that_they_were_given(dtype: torch.dtype, tmp_path: Path) -> None:
    whole, pruned, recovered = saved(tmp_path / "whole", dtype), tmp_path / "pruned", tmp_path / "recovered"
    words = ["prune", str(whole), "--data", "digits", *TINY, "--out", str(pruned)]
    assert main(words) == 0
    assert dtypes(pruned) == {dtype}
    words = ["finetune", str(pruned), "--data", "digits", "--steps", "1", "--batch-size", "2", "--tracker", "none"]
    assert main([*words, "--device", "cpu", "--preview-every", "0", "--out", str(recovered)]) == 0
    assert dtypes(recovered) == {dtype}
    again = diffprune.load_pipeline(recovered, dtype=dtype)
    assert again.unet.dtype == dtype
    assert diffprune.load_pipeline(recovered).unet.dtype == torch.float32  # as in diffusers


def test_scores_of_fp16_are_those_of_its_float32_copy(tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole", torch.float16)
    assert main(["prune", str(whole), "--data", "digits", *TINY, "--out", str(tmp_path / "pruned")]) == 0
    options = PlanOptions(data="digits", num_calibration_images=2, timestep_stride=10, device="cpu")
    of_copy = plan_model(diffprune.load_pipeline(whole, dtype=torch.float32), options)
    found = diffprune.read_plan(tmp_path / "pruned" / "plan.json")
    assert (found.groups, found.details["losses"]) == (of_copy.groups, of_copy.details["losses"])
    kept = load_file(tmp_path / "pruned" / WEIGHTS)
    original = load_file(whole / WEIGHTS)
    assert torch.isin(kept["conv_in.weight"], original["conv_in.weight"]).all()


def test_a_bf16_folder_stays_in_bf16_while_it_is_scored(tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole", torch.bfloat16)
    assert load_as_stored(str(whole)).denoiser.dtype == torch.bfloat16
    assert load_as_stored(str(whole / "unet")).denoiser.dtype == torch.bfloat16
    assert load_as_stored("digits").denoiser.dtype == torch.float32
    words = ["plan", str(whole), "--data", "generated", *TINY, "--generation-steps", "2"]
    assert main([*words, "--out", str(tmp_path / "plan.json")]) == 0
    found = diffprune.read_plan(tmp_path / "plan.json")
    options = PlanOptions(**{**found.options, "criterion": "diff-pruning"})
    assert plan_model(diffprune.load_pipeline(whole, dtype=torch.bfloat16), options).groups == found.groups


def test_networks_of_several_dtypes_are_loaded_in_float32(tmp_path: Path) -> None:
    pipeline = tiny("sd3").to(torch.bfloat16)
    pipeline.vae.float()
    pipeline.save_pretrained(tmp_path / "vae")
    loaded = load_as_stored(str(tmp_path / "vae")).pipeline
    assert (loaded.transformer.dtype, loaded.vae.dtype) == (torch.bfloat16, torch.float32)
    pipeline.text_encoder.float()
    pipeline.save_pretrained(tmp_path / "text")
    assert load_as_stored(str(tmp_path / "text")).denoiser.dtype == torch.float32


def test_float32_and_mixed_dtypes_stay_as_they_are(tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole", torch.float32)
    words = ["prune", str(whole), "--criterion", "magnitude", "--out", str(tmp_path / "pruned")]
    assert main(words) == 0
    assert dtypes(tmp_path / "pruned") == {torch.float32}
    mixed = tiny_pipeline()
    mixed.unet.conv_in.half()
    mixed.save_pretrained(tmp_path / "mixed")
    assert main(["prune", str(tmp_path / "mixed"), *words[2:-1], str(tmp_path / "again")]) == 0
    found = stored_dtypes(tmp_path / "again" / "unet")
    assert {name for name, dtype in found.items() if dtype == torch.float16} == {"conv_in.weight", "conv_in.bias"}


def test_a_bare_denoiser_keeps_its_dtype_and_variants_do_not_count(tmp_path: Path) -> None:
    unet = saved(tmp_path / "whole", torch.bfloat16) / "unet"
    diffprune.load_pipeline(tmp_path / "whole", dtype=torch.float16).unet.save_pretrained(unet, variant="fp16")
    assert main(["prune", str(unet), "--criterion", "magnitude", "--out", str(tmp_path / "pruned")]) == 0
    assert set(stored_dtypes(tmp_path / "pruned").values()) == {torch.bfloat16}
