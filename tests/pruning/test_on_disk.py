"""Pruning a folder without loading it leaves what pruning in memory leaves."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

import diffprune
from diffprune.artifact import safetensors_io as shards
from diffprune.artifact.safetensors_io import stored_tensors
from diffprune.cli.main import main
from diffprune.pipelines.denoiser_access import denoiser_of
from diffprune.pruning.on_disk import stored_model
from diffprune.stages import prune_stage as stage
from tests.conftest import tiny_pipeline
from tests.helpers.tiny_pipelines import tiny

WEIGHTS = "diffusion_pytorch_model.safetensors"


def planned(folder: Path, **options: Any) -> Path:
    with torch.random.fork_rng():
        plan = diffprune.plan(diffprune.load_pipeline(folder), **{"criterion": "magnitude", "ratio": 0.4, **options})
    plan.save(folder.with_suffix(".json"))
    return folder.with_suffix(".json")


def both(folder: Path, plan: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The folder pruned tensor by tensor, and in memory."""
    streamed, loaded = folder.with_name("streamed"), folder.with_name("loaded")
    with monkeypatch.context() as patch:
        patch.setattr(stage, "load_as_stored", None)
        assert main(["prune", str(folder), "--plan", str(plan), "--out", str(streamed)]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(stage, "stored_model", lambda source: None)
        assert main(["prune", str(folder), "--plan", str(plan), "--out", str(loaded)]) == 0
    return streamed, loaded


def assert_same_tensors(one: Path, other: Path) -> None:
    ours, theirs = stored_tensors(one), stored_tensors(other)
    assert {n: (t.dtype, t.shape, t.path.name) for n, t in ours.items()} == {
        n: (t.dtype, t.shape, t.path.name) for n, t in theirs.items()
    }
    for name, tensor in ours.items():
        a, b = (shards.read_tensor(name, stored) for stored in (tensor, theirs[name]))
        assert torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)), name


@pytest.mark.parametrize(
    ("name", "kinds"),
    [("ddpm", None), ("sd", None), ("sd3", ("heads", "neurons", "blocks")), ("sd3", ("blocks",)), ("ltx", None)],
)
def test_a_pipeline_is_pruned_on_disk_as_in_memory(
    name: str, kinds: tuple[str, ...] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = tiny_pipeline() if name == "ddpm" else tiny(name)
    pipeline.save_pretrained(tmp_path / "whole")
    plan = planned(tmp_path / "whole", **({"criterion": "random", "kinds": kinds} if kinds else {}))
    streamed, loaded = both(tmp_path / "whole", plan, monkeypatch)
    component = "unet" if (streamed / "unet").exists() else "transformer"
    assert_same_tensors(streamed / component, loaded / component)
    for file in ("config.json", "pruning.json"):
        ours, theirs = (
            json.loads(path.read_text()) if path.exists() else None
            for path in (streamed / component / file, loaded / component / file)
        )
        assert {**(ours or {}), "_name_or_path": ""} == {**(theirs or {}), "_name_or_path": ""}
    assert {p.name for p in streamed.iterdir()} == {p.name for p in loaded.iterdir()}
    assert json.loads((streamed / "model_index.json").read_text())[component] == (
        ["diffusers", "SD3Transformer2DModel"]
        if kinds == ("blocks",)
        else ["diffprune", type(denoiser_of(pipeline)).__name__]
    )
    with torch.random.fork_rng():
        again, reference = (DiffusionPipeline.from_pretrained(path) for path in (streamed, loaded))
    assert type(again) is type(reference) is type(pipeline)
    for ours, theirs in zip(denoiser_of(again).parameters(), denoiser_of(reference).parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_shards_in_and_out(dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = tiny_pipeline().to(dtype)
    pipeline.unet.conv_in.to(torch.float32)
    pipeline.save_pretrained(tmp_path / "whole", max_shard_size="20KB")
    assert len(list((tmp_path / "whole" / "unet").glob("*.safetensors"))) > 2
    monkeypatch.setattr(shards, "MAX_SHARD_SIZE", "30KB")
    save = type(pipeline).save_pretrained
    monkeypatch.setattr(
        type(pipeline), "save_pretrained", lambda self, folder: save(self, folder, max_shard_size="30KB")
    )
    streamed, loaded = both(tmp_path / "whole", planned(tmp_path / "whole"), monkeypatch)
    assert_same_tensors(streamed / "unet", loaded / "unet")
    assert {stored.dtype for stored in stored_tensors(streamed / "unet").values()} >= {shards._CODES[dtype]}
    assert len(list((streamed / "unet").glob("*.safetensors"))) > 1
    for file in sorted((loaded / "unet").glob("*.safetensors*")):
        assert (streamed / "unet" / file.name).read_bytes() == file.read_bytes()


def test_a_pruned_denoiser_alone_is_pruned_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    once = diffprune.prune(tiny_pipeline(), diffprune.plan(tiny_pipeline(), criterion="magnitude", ratio=0.25)).unet
    once.save_pretrained(tmp_path / "once")
    plan = diffprune.plan(once, criterion="random", ratio=0.4)
    plan.save(tmp_path / "plan.json")
    streamed, loaded = both(tmp_path / "once", tmp_path / "plan.json", monkeypatch)
    assert_same_tensors(streamed, loaded)
    again = diffprune.UNet2DModel.from_pretrained(streamed)
    assert [step["criterion"] for step in again.pruning.provenance] == ["magnitude", "random"]
    assert again.pruning == diffprune.UNet2DModel.from_pretrained(loaded).pruning


def test_what_has_to_be_loaded_is_loaded(tmp_path: Path) -> None:
    """Tensors under other names, pickles beside, a damaged file, and ways of pruning that compute with weights."""
    tiny_pipeline().save_pretrained(tmp_path / "whole")
    plan = planned(tmp_path / "whole")
    assert stored_model(str(tmp_path / "whole")) is not None
    assert stored_model("digits") is not None
    assert stored_model("owner/name") is None
    assert stored_model("ddpm-digits") is None
    shutil.copytree(tmp_path / "whole", tmp_path / "renamed")
    values = {n: v.clone() for n, v in load_file(tmp_path / "renamed" / "unet" / WEIGHTS).items()}
    values["mid_block.attentions.0.query.weight"] = values.pop("mid_block.attentions.0.to_q.weight")
    shards.write_shards(tmp_path / "renamed" / "unet", {n: v.to("meta") for n, v in values.items()}, values.__getitem__)
    assert stored_model(str(tmp_path / "renamed")) is None
    assert main(["prune", str(tmp_path / "renamed"), "--plan", str(plan), "--out", str(tmp_path / "a")]) == 0
    (tmp_path / "renamed" / "unet" / WEIGHTS).write_bytes(b"nothing")
    assert stored_model(str(tmp_path / "renamed")) is None
    words = ["prune", str(tmp_path / "whole"), "--plan", str(plan), "--reinit", "--out", str(tmp_path / "b")]
    assert main(words) == 0
    fresh, cut = (load_file(tmp_path / place / "unet" / WEIGHTS) for place in ("b", "a"))
    assert not torch.equal(fresh["conv_in.weight"], cut["conv_in.weight"])


def test_a_plan_for_another_model_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "whole")
    tiny_pipeline(layers_per_block=2).save_pretrained(tmp_path / "other")
    plan = planned(tmp_path / "other")
    assert main(["prune", str(tmp_path / "whole"), "--plan", str(plan), "--out", str(tmp_path / "out")]) == 1
    assert "another model" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
