"""Each command derives what it needs once: traces, checks, hashes of inputs."""

import importlib
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch_pruning

import diffprune
from diffprune.cli.main import main
from tests.conftest import tiny_pipeline

SCORING = ["--num-calibration-images", "4", "--timestep-stride", "10", "--ratio", "0.3"]
COMPENSATING = ["--num-compensation-images", "8"]

COUNTED = {
    "artifact.preconditions": ["check_sound"],
    "runs.run_record": ["identity"],
    "compute.autocast": ["resolve_precision"],
    "planning.fingerprints": ["fingerprint"],
    "planning.plan": ["read_plan"],
    "calibration.make_calibration": ["make_calibration"],
    "pruning.apply_plan": ["calibrating_of"],
    "training.batches": ["check_conditions", "check_held_out"],
    "training.fsdp": ["check_sharding"],
    "training.draws": ["shards_of"],
}
"""Module -> functions whose calls are counted, wherever they are imported."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """The number of calls of each counted function, and of traces."""
    counter: Counter[str] = Counter()

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **keywords: Any) -> Any:
            counter[name] += 1
            return function(*arguments, **keywords)

        return counted

    graph = torch_pruning.DependencyGraph
    monkeypatch.setattr(graph, "build_dependency", counting("traces", graph.build_dependency))
    for command in ("plan", "prune", "finetune"):
        importlib.import_module(f"diffprune.stages.{command}_stage")
    for path, names in COUNTED.items():
        for name in names:
            original = getattr(importlib.import_module(f"diffprune.{path}"), name)
            counted = counting(name, original)
            for module in [m for key, m in sys.modules.items() if key.startswith("diffprune.")]:
                if vars(module).get(name) is original:
                    monkeypatch.setattr(module, name, counted)
    return counter


def test_prune_with_scores_derives_everything_once(
    pipeline_folder: Path, image_folder: Path, tmp_path: Path, calls: Counter[str]
) -> None:
    words = ["prune", str(pipeline_folder), "--data", str(image_folder), *SCORING, *COMPENSATING]
    assert main([*words, "--out", str(tmp_path / "pruned")]) == 0
    assert (tmp_path / "pruned" / "compensation.json").exists()
    for name in ("traces", "check_sound", "fingerprint", "make_calibration", "resolve_precision"):
        assert calls[name] == 1, name
    assert calls["identity"] == 3, "of the model, of the plan file (None) and of the data"
    assert calls["read_plan"] == calls["calibrating_of"] == 0


@pytest.mark.parametrize("compensated", [True, False])
def test_prune_by_a_plan_derives_everything_once(
    compensated: bool, pipeline_folder: Path, image_folder: Path, tmp_path: Path, calls: Counter[str]
) -> None:
    plan = tmp_path / "plan.json"
    assert main(["plan", str(pipeline_folder), "--data", str(image_folder), *SCORING, "--out", str(plan)]) == 0
    assert calls["traces"] == calls["check_sound"] == 1
    assert calls["identity"] == 2, "of the model and of the data"
    calls.clear()
    words = ["prune", str(pipeline_folder), "--plan", str(plan), "--out", str(tmp_path / "pruned")]
    assert main([*words, *(COMPENSATING if compensated else ["--no-compensate"])]) == 0
    assert (tmp_path / "pruned" / "compensation.json").exists() == compensated
    for name in ("traces", "check_sound", "fingerprint", "read_plan", "calibrating_of", "resolve_precision"):
        assert calls[name] == 1, name
    assert calls["make_calibration"] == compensated
    assert calls["identity"] == 3, "of the model, of the plan file and of the data"


def test_rounds_trace_no_smaller_model(pipeline_folder: Path, tmp_path: Path, calls: Counter[str]) -> None:
    words = ["prune", str(pipeline_folder), "--criterion", "magnitude", "--ratio", "0.5", "--rounds", "3"]
    assert main([*words, "--out", str(tmp_path / "pruned")]) == 0
    assert calls["traces"] == 1


def test_analyses_trace_once(pipeline_folder: Path, tmp_path: Path, calls: Counter[str]) -> None:
    data = ["--data", "digits", "--num-calibration-images", "4"]
    words = ["analyze", "sensitivity", str(pipeline_folder), *data, "--num-timesteps", "2", "--ratios", "0.5"]
    assert main([*words, "--out", str(tmp_path / "sensitivity")]) == 0
    words = ["analyze", "stages", str(pipeline_folder), *data, "--num-stages", "2", "--num", "2", "--steps", "2"]
    assert main([*words, "--out", str(tmp_path / "stages")]) == 0
    assert calls["traces"] == calls["check_sound"] == calls["make_calibration"] == 2


def test_finetune_checks_once(pipeline_folder: Path, image_folder: Path, tmp_path: Path, calls: Counter[str]) -> None:
    words = ["finetune", str(pipeline_folder), "--teacher", str(pipeline_folder), "--data", str(image_folder)]
    assert main([*words, "--steps", "1", "--batch-size", "2", "--out", str(tmp_path / "tuned")]) == 0
    for name in ("check_sharding", "check_conditions", "check_held_out", "shards_of"):
        assert calls[name] == 1, name
    assert calls["identity"] == 3, "of the model, of the teacher and of the data"


def test_a_python_prune_traces_once(calls: Counter[str]) -> None:
    pipeline = tiny_pipeline()
    plan = diffprune.plan(pipeline, criterion="magnitude", ratio=0.3)
    calls.clear()
    diffprune.prune(pipeline, plan, data="digits", num_compensation_images=8)
    assert calls["traces"] == calls["check_sound"] == calls["fingerprint"] == 1
