"""Plans as files."""

from pathlib import Path

import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DModel

import diffprune
from diffprune.cli.main import main
from diffprune.errors import PlanError
from diffprune.planning import fingerprint
from diffprune.runs.atomic_files import read_json
from tests.conftest import tiny_unet


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    plan = diffprune.plan(tiny_unet(), criterion="magnitude", ratio=0.4)
    plan.save(tmp_path / "plan.json")
    assert diffprune.read_plan(tmp_path / "plan.json") == plan


def test_the_same_inputs_give_the_same_plan() -> None:
    plans = [diffprune.plan(tiny_unet(), criterion="random", seed=5) for _ in range(2)]
    assert plans[0] == plans[1]
    assert plans[0] != diffprune.plan(tiny_unet(), criterion="random", seed=6)


def test_the_fingerprint_is_of_the_architecture() -> None:
    assert fingerprint(tiny_unet()) == fingerprint(tiny_unet().to("meta"))
    assert fingerprint(tiny_unet()) != fingerprint(tiny_unet(layers_per_block=2))


def test_a_plan_for_another_number_of_heads_is_refused() -> None:
    """Their weights have the same shapes."""
    plan = diffprune.plan(tiny_unet(attention_head_dim=16), criterion="magnitude", ratio=0.5)
    assert fingerprint(tiny_unet(attention_head_dim=16)) != fingerprint(tiny_unet(attention_head_dim=8))
    with pytest.raises(PlanError, match="another model"):
        diffprune.prune(tiny_unet(attention_head_dim=8), plan)


def keeping(plan: diffprune.Plan, name: str, kept: tuple[int, ...]) -> diffprune.Plan:
    changed = plan.groups[name].model_copy(update={"kept": kept})
    return plan.model_copy(update={"groups": {**plan.groups, name: changed}})


def test_a_plan_may_take_all_blocks_only_where_the_model_can_do_without(unet: UNet2DModel) -> None:
    small = diffprune.prune(unet, keeping(diffprune.plan(unet, kinds=("blocks",), criterion="random"), "mid_block", ()))
    assert small.mid_block is None
    with torch.random.fork_rng():
        dit = DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=8, num_layers=3, sample_size=8)
    plan = diffprune.plan(dit, kinds=("blocks",), criterion="random")
    for kept, expected in {(): "at least one", (1, 2): "block 0 cannot be removed", (0, 3): "must lie in 0..2"}.items():
        with pytest.raises(PlanError, match=expected):
            diffprune.prune(dit, keeping(plan, "transformer_blocks", kept))


def test_a_plan_file_is_kept_or_refused_but_not_lost(
    pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plan.json"
    words = ["plan", str(pipeline_folder), "--out", str(out), "--criterion", "magnitude"]
    assert main(words) == 0
    first = out.stat().st_mtime_ns
    assert main(words) == 0
    assert out.stat().st_mtime_ns == first
    assert main([*words, "--ratio", "0.5"]) == 1
    assert "holds a plan with other options or inputs (--ratio: was 0.3, is 0.5)" in capsys.readouterr().err
    assert main([*words, "--ratio", "0.5", "--overwrite"]) == 0
    assert diffprune.read_plan(str(out)).options["ratio"] == 0.5


def test_values_may_be_given_by_name_and_paths_as_paths(pipeline: object, image_folder: Path, tmp_path: Path) -> None:
    options = {"num_calibration_images": 4, "timestep_stride": 10}
    plan = diffprune.plan(model=pipeline, data=image_folder, **options)
    plan.save(str(tmp_path / "plan.json"))
    small = diffprune.prune(pipeline, plan=plan)
    tuned = diffprune.finetune(small, data=image_folder, steps=1, batch_size=2)
    assert tuned.unet.config == small.unet.config
    with pytest.raises(diffprune.OptionError, match="needs calibration images"):
        diffprune.prune(pipeline)


def test_a_plan_holds_nothing_of_the_run_that_made_it(
    pipeline_folder: Path, image_folder: Path, tmp_path: Path
) -> None:
    run = ["--device", "cpu", "--mixed-precision", "no", "--offload", "cpu", "--batch-size", "3"]
    words = ["plan", str(pipeline_folder), "--data", str(image_folder), "--num-calibration-images", "4"]
    assert main([*words, *run, "--timestep-stride", "10", "--out", str(tmp_path / "plan")]) == 0
    plan = diffprune.read_plan(tmp_path / "plan" / "plan.json")
    recorded = read_json(tmp_path / "plan" / "run.json")["options"]
    of_run = {"device", "mixed_precision", "offload", "batch_size", "gradient_checkpointing"}
    assert {*recorded} - {*plan.options} == of_run
    assert recorded["batch_size"] == 3
    assert plan.options["num_calibration_images"] == 4


def test_a_plan_is_carried_out_with_options_of_another_run(
    pipeline_folder: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, plan = str(pipeline_folder), str(tmp_path / "plan" / "plan.json")
    words = ["--data", str(image_folder), "--num-calibration-images", "4", "--timestep-stride", "10"]
    assert main(["plan", model, *words, "--out", str(tmp_path / "plan")]) == 0
    run = ["--device", "cpu", "--offload", "cpu", "--batch-size", "8", "--num-compensation-images", "8"]
    pruned = ["prune", model, "--plan", plan, "--out", str(tmp_path / "pruned")]
    assert main([*pruned, *run, "--mixed-precision", "bf16"]) == 0
    options = read_json(tmp_path / "pruned" / "run.json")["options"]
    assert (options["offload"], options["batch_size"], options["mixed_precision"]) == ("cpu", 8, "bf16")
    capsys.readouterr()
    assert main([*pruned, "--num-compensation-images", "8", "--mixed-precision", "no"]) == 1
    assert "--mixed-precision: was bf16, is no" in capsys.readouterr().err
    assert main([*pruned, "--num-compensation-images", "8", "--mixed-precision", "bf16"]) == 0
    assert main(["prune", model, "--plan", plan, "--gradient-checkpointing", "--out", str(tmp_path / "x")]) == 2
    assert "leave out --gradient-checkpointing" in capsys.readouterr().err


def test_the_python_prune_takes_the_options_of_a_run(pipeline: object, image_folder: Path) -> None:
    plan = diffprune.plan(pipeline, data=image_folder, num_calibration_images=4, timestep_stride=10)
    small = diffprune.prune(pipeline, plan, device="cpu", batch_size=8, num_compensation_images=8)
    assert small.unet.pruning_provenance[-1]["compensation"]["layers_fitted"] > 0
