"""Training sharded by FSDP2 over two processes on a CPU: it is the training of one process."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import diffprune
from diffprune.cli.main import main
from diffprune.errors import OptionError
from diffprune.options import FinetuneOptions, TrainOptions
from diffprune.runs.atomic_files import read_json
from diffprune.training import fsdp as sharding
from diffprune.training.fsdp import check_sharding, name_blocks
from tests.conftest import text_unet, tiny_pipeline, tiny_unet
from tests.helpers.forks import Forks

LAUNCHED = {
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true", "FSDP_SYNC_MODULE_STATES": "true",
}  # fmt: skip
"""What `accelerate launch --use_fsdp --fsdp_version 2` sets."""

WORDS = [
    "--data", "digits", "--device", "cpu", "--batch-size", "8", "--steps", "8", "--checkpoint-every", "3",
    "--log-every", "1", "--num-validation-images", "9", "--validate-every", "4", "--mixed-precision", "no",
]  # fmt: skip
"""Nine images are three batches, which two processes share unequally."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With `original` and `pruned`."""
    there, pipeline = tmp_path_factory.mktemp("sharding"), tiny_pipeline()
    pipeline.save_pretrained(there / "original")
    small = diffprune.prune(pipeline, diffprune.plan(pipeline, criterion="magnitude", ratio=0.25))
    small.save_pretrained(there / "pruned")
    return there


def words_for(folder: Path, out: Path, *more: str, optimizer: str = "adamw") -> list[str]:
    models = ["finetune", folder / "pruned", "--teacher", folder / "original", "--out", out]
    return [*map(str, models), *WORDS, "--optimizer", optimizer, *more]


def weights(out: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = diffprune.load_pipeline(out).unet.state_dict()
    return state


def history(out: Path) -> Any:
    return read_json(out / "run.json")["result"]["history"]


def assert_the_same_training(first: Path, second: Path, start: Path) -> None:
    """The same curves to 1e-5, and weights apart by less than a thousandth of their way."""
    for ours, theirs in zip(history(first), history(second), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    begun, one, two = weights(start), weights(first), weights(second)

    def way(origin: dict[str, Tensor]) -> float:
        return sum(float((one[name] - origin[name]).square().sum()) for name in one) ** 0.5

    assert one.keys() == two.keys()
    assert way(two) < 1e-3 * way(begun)


@pytest.fixture(scope="module")
def of_one(folder: Path) -> Path:
    assert main(words_for(folder, folder / "one")) == 0
    return folder / "one"


def test_a_sharded_training_that_is_killed_goes_on_to_what_one_process_trains(
    folder: Path, of_one: Path, forks: Forks, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_for(folder, tmp_path / "two")
    killed = forks.run(words, num_processes=2, environment=LAUNCHED, die_at=("step-0000006", 1))
    assert killed.killed, killed.output
    (checkpoint,) = (tmp_path / "two" / "checkpoints").glob("step-*")
    assert {path.parent.name for path in checkpoint.rglob("*.distcp")} == {
        "pytorch_model_fsdp_0", "optimizer_0", "ema", "best",
    }  # fmt: skip
    assert main(words) == 1
    assert (
        "was saved under FSDP, in shards, but this run is without FSDP; launch it the same way"
        in capsys.readouterr().err
    )
    ended = forks.run(words, num_processes=2, environment=LAUNCHED)
    assert ended.status == 0, ended.output
    assert_the_same_training(of_one, tmp_path / "two", folder / "pruned")


def test_what_shards_cannot_do_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sharding, "is_requested", lambda device: True)
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    check_sharding(FinetuneOptions(optimizer="adamw", lora_rank=2, device="cpu"))
    check_sharding(TrainOptions(device="cpu"))
    with pytest.raises(OptionError, match="soap does not support sharded weights; give --optimizer adamw"):
        check_sharding(FinetuneOptions(device="cpu"))
    with pytest.raises(OptionError, match="preview_every: a preview needs the full model on one rank"):
        check_sharding(TrainOptions(device="cpu", preview_every=5))
    for name, value, said in (
        ("FSDP_VERSION", "1", "FSDP version 1 is not supported; give accelerate --fsdp_version 2"),
        ("FSDP_AUTO_WRAP_POLICY", "SIZE_BASED_WRAP", "SIZE_BASED_WRAP is not supported by FSDP2"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "give --gradient-checkpointing of diffprune instead"),
        ("FSDP_OFFLOAD_PARAMS", "true", "weights are in main memory already"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "parallelism_config is not supported"),
    ):
        with monkeypatch.context() as other, pytest.raises(OptionError, match=said):
            other.setenv(name, value)
            check_sharding(TrainOptions(device="cpu"))
    monkeypatch.undo()
    check_sharding(FinetuneOptions(device="cpu"))


def named(model: Any, *given: str) -> list[str]:
    plugin = SimpleNamespace(auto_wrap_policy=object(), transformer_cls_names_to_wrap=list(given) or None)
    name_blocks(SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin)), model)  # type: ignore[arg-type]
    found: list[str] = plugin.transformer_cls_names_to_wrap
    return found


def test_a_block_is_gathered_at_a_time() -> None:
    assert named(tiny_unet()) == ["AttnDownBlock2D", "AttnUpBlock2D", "DownBlock2D", "UpBlock2D"]
    assert named(text_unet()) == ["BasicTransformerBlock", "CrossAttnUpBlock2D", "ResnetBlock2D", "UpBlock2D"]
    assert named(tiny_unet(), "ResnetBlock2D") == ["ResnetBlock2D"]
    with pytest.raises(OptionError, match=r"UNet2DModel has no layer of class BasicTransformerBlock.*UpBlock"):
        named(tiny_unet(), "ResnetBlock2D", "BasicTransformerBlock")


VARIANTS: dict[str, tuple[list[str], dict[str, str]]] = {
    "adapters": (["--lora-rank", "2"], {}),
    "checkpointing": (["--gradient-checkpointing"], {}),
    "accumulation": (["--accumulation-steps", "2"], {}),
    "whole state dicts": ([], {"FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}),
    "one unit": ([], {"FSDP_AUTO_WRAP_POLICY": "NO_WRAP"}),
    "sgd": (["--optimizer", "sgd"], {}),
    "nadam": (["--optimizer", "nadam"], {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_a_sharded_training_is_that_of_one_process_and_goes_on_with_more_processes(
    name: str, folder: Path, forks: Forks, tmp_path: Path
) -> None:
    more, variables = VARIANTS[name]
    environment = {**LAUNCHED, **variables}
    assert main(words_for(folder, tmp_path / "one", *more)) == 0
    words = words_for(folder, tmp_path / "two", *more)
    killed = forks.run(words, num_processes=2, environment=environment, die_at=("step-0000006", 1))
    assert killed.killed, killed.output
    ended = forks.run(words, num_processes=4 if name == "adapters" else 2, environment=environment)
    assert ended.status == 0, ended.output
    assert_the_same_training(tmp_path / "one", tmp_path / "two", folder / "pruned")


@pytest.mark.slow
def test_accelerate_launches_it(folder: Path, of_one: Path, tmp_path: Path) -> None:
    launch = ["accelerate.commands.accelerate_cli", "launch", "--use_fsdp", "--fsdp_version", "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}

    def launched(optimizer: str) -> "subprocess.CompletedProcess[str]":
        words = words_for(folder, tmp_path / optimizer, optimizer=optimizer)
        command = [sys.executable, "-m", *launch, "--num_processes", "2", "-m", "diffprune", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    ended = launched("adamw")
    assert ended.returncode == 0, ended.stderr
    assert_the_same_training(of_one, tmp_path / "adamw", folder / "pruned")
    refused = launched("soap")
    assert refused.returncode != 0
    assert "soap does not support sharded weights; give --optimizer adamw" in refused.stderr
    assert not (tmp_path / "soap").exists()
