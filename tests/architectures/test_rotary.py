"""Attentions whose rotary tables span all heads: the manifest names the kept heads, and is checked like the rest."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LTXVideoTransformer3DModel

import diffprune
from diffprune.errors import ManifestError

ATTENTION = "transformer_blocks.0.attn1"


def ltx() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LTXVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=4,
            attention_head_dim=8,
            cross_attention_dim=32,
            num_layers=1,
            caption_channels=12,
        ).eval()


def output_of(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        found: torch.Tensor = model(
            hidden_states=torch.randn(2, 12, 4, generator=generator),
            encoder_hidden_states=torch.randn(2, 3, 12, generator=generator),
            timestep=torch.tensor([10.0, 500.0]),
            encoder_attention_mask=torch.ones(2, 3),
            num_frames=3,
            height=2,
            width=2,
        ).sample
    return found


def test_heads_that_are_pruned_again_stay_those_of_the_stock_model(tmp_path: Path) -> None:
    once = diffprune.prune(ltx(), diffprune.plan(ltx(), criterion="random", ratio=0.3))
    kept = once.pruning.rotary_heads[ATTENTION]
    twice = diffprune.prune(once, diffprune.plan(once, criterion="magnitude", ratio=0.5))
    assert len(kept) == 2
    assert len(twice.pruning.rotary_heads[ATTENTION]) == 1
    assert set(twice.pruning.rotary_heads[ATTENTION]) < set(kept)
    twice.save_pretrained(tmp_path)
    again = diffprune.LTXVideoTransformer3DModel.from_pretrained(tmp_path)
    assert again.pruning == twice.pruning
    assert torch.equal(output_of(again), output_of(twice))


@pytest.mark.parametrize(
    "heads", [[0, 0], [1, 0], [0, 4], [-1, 2], [0], [0, 1, 2]], ids=lambda heads: ",".join(map(str, heads))
)
def test_heads_that_cannot_be_are_refused(heads: list[int], tmp_path: Path) -> None:
    diffprune.prune(ltx(), diffprune.plan(ltx(), criterion="random", ratio=0.3)).save_pretrained(tmp_path)
    manifest = json.loads((tmp_path / "pruning.json").read_text())
    manifest["rotary_heads"][ATTENTION] = heads
    (tmp_path / "pruning.json").write_text(json.dumps(manifest))
    with pytest.raises(ManifestError, match="rotary heads"):
        diffprune.LTXVideoTransformer3DModel.from_pretrained(tmp_path)


def test_a_module_without_such_tables_is_refused(tmp_path: Path) -> None:
    diffprune.prune(ltx(), diffprune.plan(ltx(), criterion="random", ratio=0.3)).save_pretrained(tmp_path)
    manifest = json.loads((tmp_path / "pruning.json").read_text())
    manifest["rotary_heads"]["proj_in"] = [0]
    (tmp_path / "pruning.json").write_text(json.dumps(manifest))
    with pytest.raises(ManifestError, match="proj_in: not an attention with rotary tables"):
        diffprune.LTXVideoTransformer3DModel.from_pretrained(tmp_path)


def test_lost_heads_without_their_names_are_refused(tmp_path: Path) -> None:
    diffprune.prune(ltx(), diffprune.plan(ltx(), criterion="random", ratio=0.3)).save_pretrained(tmp_path)
    manifest = json.loads((tmp_path / "pruning.json").read_text())
    del manifest["rotary_heads"][ATTENTION]
    (tmp_path / "pruning.json").write_text(json.dumps(manifest))
    with pytest.raises(ManifestError, match="rotary_heads must list the heads it kept"):
        diffprune.LTXVideoTransformer3DModel.from_pretrained(tmp_path)


def test_heads_that_do_not_divide_the_rows_are_refused(tmp_path: Path) -> None:
    diffprune.prune(ltx(), diffprune.plan(ltx(), criterion="random", ratio=0.3)).save_pretrained(tmp_path)
    manifest = json.loads((tmp_path / "pruning.json").read_text())
    manifest["modules"][ATTENTION]["heads"] = 3
    (tmp_path / "pruning.json").write_text(json.dumps(manifest))
    with pytest.raises(ManifestError, match="got 3 heads; the 16 rows of to_q"):
        diffprune.LTXVideoTransformer3DModel.from_pretrained(tmp_path)
