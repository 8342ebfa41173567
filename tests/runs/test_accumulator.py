"""Sums of scores on disk: an interrupted pass goes on where it was, and ends in the same scores, to the bit."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel
from torch import Tensor

from diffprune.calibration.calibration_set import Calibration
from diffprune.criteria import CRITERIA
from diffprune.errors import ModelError
from diffprune.groups import find_blocks, find_groups
from diffprune.options import UNCALIBRATED_CRITERIA, PlanOptions
from diffprune.planning import choose_units, score
from diffprune.runs import accumulator as running_sums
from diffprune.runs.accumulator import Accumulator
from tests.conftest import tiny_pipeline

CALIBRATED = [name for name in CRITERIA if name not in UNCALIBRATED_CRITERIA]


class Killed(BaseException):
    """In place of a kill."""


@pytest.fixture(autouse=True)
def _saves_after_every_item(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running_sums, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(running_sums, "MAX_SAVE_SHARE", float("inf"))


def images() -> Calibration:
    clean, noise = torch.randn(2, 4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    return Calibration(clean, noise, tiny_pipeline().scheduler)


def interrupted(work: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, *, after: int) -> None:
    """Let `work` die once it has saved so often."""
    save, left = Accumulator._save, [after]

    def save_and_die(sums: Accumulator) -> None:
        save(sums)
        left[0] -= 1
        if not left[0]:
            raise Killed

    with monkeypatch.context() as dying, pytest.raises(Killed):
        dying.setattr(Accumulator, "_save", save_and_die)
        work()


def count_saves(work: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, int]:
    save, seen = Accumulator._save, []

    def counted(sums: Accumulator) -> None:
        seen.append(sums.position)
        save(sums)

    with monkeypatch.context() as patch:
        patch.setattr(Accumulator, "_save", counted)
        return work(), len(seen)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("criterion", CALIBRATED)
def test_interrupted_scores_go_on_to_the_same(criterion: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unet = tiny_pipeline().unet
    groups = find_groups(unet)
    monkeypatch.setattr(
        sys.modules["diffprune.criteria.obs"], "MAX_HESSIAN_ENTRIES", 2**20
    )  # its groups in several parts
    options = PlanOptions(criterion=criterion, timestep_stride=4, batch_size=3, device="cpu")

    def scored(folder: Path) -> Any:
        return score(unet, groups, images(), options, Accumulator("cpu", folder))

    whole, num_saves = count_saves(lambda: scored(tmp_path / "whole"), monkeypatch)
    interrupted(lambda: scored(tmp_path / "killed"), monkeypatch, after=num_saves - 1)
    again, num_left = count_saves(lambda: scored(tmp_path / "killed"), monkeypatch)
    assert (num_saves, num_left) == (15 if criterion == "obs" else 5, 1)
    assert equal(again.values, whole.values)
    assert again.details == whole.details
    assert equal(whole.values, score(unet, groups, images(), options).values)
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["scores-units.safetensors"]


@pytest.mark.parametrize("criterion", ["bypass", "cosine"])
def test_interrupted_scores_of_blocks_go_on_to_the_same(
    criterion: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dit = DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, num_layers=4, sample_size=8,
            patch_size=2, num_embeds_ada_norm=10,
        ).eval()  # fmt: skip
        clean, noise = torch.randn(2, 3, 4, 8, 8)
    calibration = Calibration(clean, noise, DDPMScheduler(num_train_timesteps=20), {"class_labels": torch.arange(3)})
    options = PlanOptions(
        criterion="magnitude", kinds=("blocks",), block_criterion=criterion, block_timesteps=3, device="cpu"
    )

    def scored(folder: Path) -> Any:
        only = [group for group in find_blocks(dit) if group.kind == "blocks"]
        return score(dit, only, calibration, options, Accumulator("cpu", folder)).values

    whole = scored(tmp_path / "whole")
    interrupted(lambda: scored(tmp_path / "killed"), monkeypatch, after=2)
    again, num_left = count_saves(lambda: scored(tmp_path / "killed"), monkeypatch)
    assert num_left == 1
    assert equal(again, whole)


def test_a_finished_round_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unet = tiny_pipeline().unet
    options = PlanOptions(criterion="taylor", timestep_stride=7, rounds=2, ratio=0.5, device="cpu")

    def chosen(folder: Path) -> Any:
        return choose_units(unet, find_groups(unet), images(), options, Accumulator("cpu", folder))

    whole = chosen(tmp_path / "whole")
    interrupted(lambda: chosen(tmp_path / "killed"), monkeypatch, after=4)
    again, num_left = count_saves(lambda: chosen(tmp_path / "killed"), monkeypatch)
    assert num_left == 2
    assert again == whole


def test_damaged_sums_are_made_again_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unet, options = tiny_pipeline().unet, PlanOptions(criterion="fisher", timestep_stride=7, device="cpu")

    def scored(made_from: str = "this") -> Any:
        return score(unet, find_groups(unet), images(), options, Accumulator("cpu", tmp_path, {"of": made_from})).values

    whole = score(unet, find_groups(unet), images(), options).values
    interrupted(scored, monkeypatch, after=2)
    (saved,) = tmp_path.rglob("at-*")
    content = saved.read_bytes()
    saved.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with caplog.at_level(logging.WARNING):
        again, num_left = count_saves(scored, monkeypatch)
    assert "recomputing it: its checksum does not match its content" in caplog.text
    assert num_left == 3
    assert equal(again, whole)
    caplog.clear()
    assert count_saves(lambda: scored("that"), monkeypatch)[1] == 3
    assert "belongs to other inputs" in caplog.text


def test_a_loss_that_is_not_finite_ends_the_pass() -> None:
    unet = tiny_pipeline().unet
    with torch.no_grad():
        unet.conv_out.bias.fill_(float("nan"))
    for criterion in ("diff-pruning", "fisher"):
        with pytest.raises(ModelError, match="the loss at timestep 0 is nan"):
            score(unet, find_groups(unet), images(), PlanOptions(criterion=criterion, device="cpu"))
