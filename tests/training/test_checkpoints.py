"""Checkpoints are verified, and give way to the ones before."""

import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

from diffprune.calibration.calibration_set import images_for
from diffprune.errors import FolderError
from diffprune.options import FinetuneOptions
from diffprune.pipelines.diffusion import process_of
from diffprune.training.checkpoints import newest_intact
from diffprune.training.trainer import train_denoiser
from tests.conftest import tiny_pipeline

QUICK: dict[str, Any] = {
    "data": "digits", "batch_size": 4, "log_every": 2, "learning_rate": 1e-3, "checkpoint_every": 2, "tracker": "none",
    "device": "cpu",
}  # fmt: skip


def trained(folder: Path | None, **changes: Any) -> nn.Module:
    pipeline = tiny_pipeline(dropout=0.1)
    process = process_of(pipeline)
    options = FinetuneOptions(**{**QUICK, **changes})
    return train_denoiser(pipeline.unet, process, images_for(process, "digits"), options, folder=folder)[0]


def equal(first: nn.Module, second: nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def whole() -> nn.Module:
    """Of a run of six steps that nothing disturbs."""
    return trained(None, steps=6)


@pytest.fixture(scope="module")
def after_four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was left after four of its steps."""
    folder = tmp_path_factory.mktemp("checkpoints") / "run"
    trained(folder, steps=4)
    return folder


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def alter(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [cut, alter, Path.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", "custom_checkpoint_0.pkl", "checksums.json"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    damage: Callable[[Path], None], name: str, after_four: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(after_four / "checkpoints", folder)
    assert newest_intact(folder) == folder / "step-0000004"
    damage(folder / "step-0000004" / name)
    assert newest_intact(folder) == folder / "step-0000002"
    assert "step-0000004" in caplog.text
    assert name in caplog.text or damage is alter  # then the file whose sum was altered is named


@pytest.mark.parametrize("damaged", [[], ["step-0000004"], ["step-0000004", "step-0000002"]])
def test_whatever_is_left_of_the_checkpoints_the_end_is_the_same(
    damaged: list[str], after_four: Path, whole: nn.Module, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(after_four, folder)
    for name in damaged:
        cut(folder / "checkpoints" / name / "optimizer.bin")
    assert equal(trained(folder, steps=6), whole)
    assert newest_intact(folder / "checkpoints") == folder / "checkpoints" / "step-0000006"


@pytest.mark.parametrize("keep", [1, 3])
def test_the_last_few_checkpoints_stay(keep: int, tmp_path: Path) -> None:
    trained(tmp_path, steps=5, checkpoint_every=1, keep_checkpoints=keep)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == [f"step-000000{step}" for step in range(6 - keep, 6)]


@pytest.mark.parametrize("limit", [100_000, 300_000])
def test_a_full_disk_leaves_the_checkpoints_that_are_there(limit: int, after_four: Path, tmp_path: Path) -> None:
    """The weights take 220 kB, the optimizer's state twice that; the system says of a limit what it says of a disk."""
    folder = tmp_path / "run"
    shutil.copytree(after_four, folder)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(FolderError, match="free space"):
            trained(folder, steps=6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["step-0000002", "step-0000004"]


OPTIMIZERS = get_args(FinetuneOptions.model_fields["optimizer"].annotation)
QUICKLY_TESTED = ("adafactor", "soap")


@pytest.mark.parametrize(
    "optimizer", [pytest.param(o, marks=() if o in QUICKLY_TESTED else pytest.mark.slow) for o in OPTIMIZERS]
)
def test_every_optimizer_trains_and_resumes(optimizer: str, tmp_path: Path) -> None:
    undisturbed = trained(None, steps=3, optimizer=optimizer)
    trained(tmp_path, steps=2, optimizer=optimizer)
    assert equal(trained(tmp_path, steps=3, optimizer=optimizer), undisturbed)
    assert not equal(undisturbed, tiny_pipeline(dropout=0.1).unet)
    assert all(torch.isfinite(value).all() for value in undisturbed.parameters())


def test_other_names_of_optimizers_are_refused() -> None:
    with pytest.raises(ValueError, match="adamw"):
        FinetuneOptions(optimizer="adamw8")


def test_gradient_checkpointing_changes_nothing(whole: nn.Module) -> None:
    cheap = trained(None, steps=6, gradient_checkpointing=True)
    assert equal(cheap, whole)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in cheap.modules())
