"""The pruned artifact: ordinary diffusers folders that load with bitwise equal weights and outputs."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, DiffusionPipeline, UNet2DModel
from torch import Tensor, nn

import diffprune
from diffprune.errors import ManifestError, ModelError
from tests.conftest import tiny_pipeline, tiny_unet

PIPELINES = [DiffusionPipeline, DDPMPipeline, DDIMPipeline]


def output(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    sample = torch.randn(2, 1, 16, 16, generator=generator).to(model.dtype)
    with torch.no_grad():
        result: Tensor = model(sample, torch.tensor([1, 18])).sample
    return result


@pytest.fixture(scope="module")
def small() -> DDPMPipeline:
    pipeline = tiny_pipeline(attention_head_dim=8)
    return diffprune.prune(pipeline, diffprune.plan(pipeline, criterion="magnitude", ratio=0.5))


@pytest.fixture(scope="module")
def folder(small: DDPMPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pruned")
    small.save_pretrained(path)
    return path


@pytest.mark.parametrize("kind", PIPELINES)
@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_pipelines_load_it_bitwise_equal(
    kind: type[DiffusionPipeline], low_cpu_mem_usage: bool, small: DDPMPipeline, folder: Path
) -> None:
    again = kind.from_pretrained(folder, low_cpu_mem_usage=low_cpu_mem_usage)
    for (name, ours), theirs in zip(small.unet.state_dict().items(), again.unet.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    assert torch.equal(output(small.unet), output(again.unet))


def test_the_class_is_a_same_named_subclass_of_the_stock_class(small: DDPMPipeline, folder: Path) -> None:
    assert isinstance(small.unet, UNet2DModel)
    assert type(small.unet).__name__ == "UNet2DModel"
    assert type(small.unet) is diffprune.UNet2DModel
    index = json.loads((folder / "model_index.json").read_text())
    assert index["unet"] == ["diffprune", "UNet2DModel"]


def test_the_stock_config_stays_what_the_original_was(small: DDPMPipeline, folder: Path) -> None:
    config = json.loads((folder / "unet" / "config.json").read_text())
    assert config["block_out_channels"] == [16, 32]
    assert sorted(p.name for p in (folder / "unet").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "pruning.json",
    ]


def test_model_and_pipeline_keep_the_manifest_when_saved_again(folder: Path, tmp_path: Path) -> None:
    again = DiffusionPipeline.from_pretrained(folder)
    again.save_pretrained(tmp_path / "pipeline")
    again.unet.save_pretrained(tmp_path / "unet")
    before = (folder / "unet" / "pruning.json").read_text()
    assert (tmp_path / "pipeline" / "unet" / "pruning.json").read_text() == before
    assert (tmp_path / "unet" / "pruning.json").read_text() == before
    third = diffprune.load_pipeline(tmp_path / "pipeline")
    assert torch.equal(output(again.unet), output(third.unet))


@pytest.mark.parametrize("keyword", ["dtype", "torch_dtype"])
def test_dtype_is_honoured(keyword: str, folder: Path) -> None:
    model = diffprune.UNet2DModel.from_pretrained(folder, subfolder="unet", **{keyword: torch.bfloat16})
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert output(model).dtype == torch.bfloat16


def test_variant_and_shards_are_honoured(small: DDPMPipeline, tmp_path: Path) -> None:
    half = copy.deepcopy(small.unet).half()
    half.save_pretrained(tmp_path, variant="fp16", max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = diffprune.UNet2DModel.from_pretrained(tmp_path, variant="fp16", dtype=torch.float16)
    for ours, theirs in zip(half.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_loading_info_is_given_when_asked_for(folder: Path) -> None:
    model, info = diffprune.UNet2DModel.from_pretrained(folder, subfolder="unet", output_loading_info=True)
    assert isinstance(model, diffprune.UNet2DModel)
    assert info["missing_keys"] == []


def test_a_folder_that_was_not_pruned_gives_the_stock_class(pipeline_folder: Path) -> None:
    model = diffprune.UNet2DModel.from_pretrained(pipeline_folder, subfolder="unet", local_files_only=True)
    assert type(model) is UNet2DModel


def test_deepcopy_to_and_state_dict_behave_as_stock(small: DDPMPipeline) -> None:
    twin = copy.deepcopy(small.unet)
    assert torch.equal(output(twin), output(small.unet))
    assert twin.pruning == small.unet.pruning
    assert twin.to(torch.float64).dtype == torch.float64
    twin.load_state_dict(small.unet.state_dict())


def test_gradients_flow_and_checkpointing_can_be_switched_on(small: DDPMPipeline) -> None:
    model = copy.deepcopy(small.unet).train()
    model.enable_gradient_checkpointing()
    model(torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)), 3).sample.square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_pickles_are_neither_written_nor_read(small: DDPMPipeline, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="safetensors"):
        small.unet.save_pretrained(tmp_path, safe_serialization=False)
    assert not list(tmp_path.iterdir())


def test_weights_of_other_widths_are_refused(folder: Path, tmp_path: Path) -> None:
    tiny_unet(attention_head_dim=8).save_pretrained(tmp_path)
    (tmp_path / "pruning.json").write_text((folder / "unet" / "pruning.json").read_text())
    with pytest.raises(ManifestError, match="do not fit"):
        diffprune.UNet2DModel.from_pretrained(tmp_path)


FRESH = """
import sys
{before}
import diffprune
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1])
images = pipe(batch_size=1, num_inference_steps=2, output_type="np").images
assert images.shape == (1, 16, 16, 1), images.shape
assert type(pipe.unet).__module__ == "diffprune"
"""
UNAWARE = """
from diffusers import DiffusionPipeline
try:
    DiffusionPipeline.from_pretrained(sys.argv[1])
except Exception as error:
    assert "import diffprune" in str(error), error
"""


@pytest.mark.parametrize("before", ["", UNAWARE], ids=["diffprune first", "diffusers first"])
def test_a_fresh_process_loads_it_and_draws(before: str, folder: Path) -> None:
    """Where nothing has imported diffprune yet, diffusers 0.42.0 does so itself, 0.42.1 asks for it."""
    code = FRESH.format(before=before)
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
