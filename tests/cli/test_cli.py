"""The command line: help without torch, one JSON object, exit statuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import diffprune
from diffprune.cli.commands import COMMANDS
from diffprune.cli.main import main
from diffprune.errors import OptionError
from diffprune.options import PlanOptions, parse_options


def test_no_command_loads_torch_to_explain_itself() -> None:
    code = (
        "import sys, diffprune.cli.main as cli\n"
        "for name in cli.COMMANDS:\n"
        "    try: cli.main([*name.split(), '--help'])\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "assert cli.main(['--help']) == 0 and cli.main(['--version']) == 0\n"
        "assert not {'torch', 'diffusers', 'datasets', 'matplotlib', 'rich'} & set(sys.modules), 'a heavy import'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f"usage: diffprune {name}" in done.stdout for name in COMMANDS)
    assert diffprune.__version__ in done.stdout


def test_help_shows_numbers_with_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--round-to {N,auto}" in text
    assert "--power {1,2}" in text
    assert "local: each group alone; global: all of one kind; isomorphic: all" in text


def answer(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, object]:
    """The one JSON object a command prints."""
    capsys.readouterr()
    assert main([*map(str, words), "--json"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    value = json.loads(printed)
    assert isinstance(value, dict)
    return value


def test_inspect_json_has_what_is_promised(pipeline_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = answer(capsys, "inspect", pipeline_folder)
    assert {"class_name", "params", "macs", "pruned"} <= facts.keys()
    assert (facts["class_name"], facts["pruned"]) == ("UNet2DModel", False)
    assert facts["units"]["blocks"] == 1, "the middle may go"


def test_plan_json_has_what_is_promised(capsys: pytest.CaptureFixture[str]) -> None:
    figures = answer(capsys, "plan", "ddpm-cifar10", "--ratio", "0.3")
    expected = {"params_before", "params_after", "macs_before", "macs_after", "num_groups", "criterion"}
    assert expected <= figures.keys()
    assert (figures["params_before"], figures["criterion"]) == (35746307, "random")
    assert figures["forecast"] == "without weights: random choice"
    assert figures["requested"] == "remove 30% of the units"
    assert figures["kept"] == "55.5% of the parameters, 55.9% of the MACs"


def test_the_blocks_of_inspect_have_headings(pipeline_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(pipeline_folder), "--no-latency"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["block", "class", "parameters", "MACs", "prunable", "channels", "prunable", "blocks"] in lines
    assert any(line[:2] == ["conv_in", "Conv2d"] and line[-1] == "-" for line in lines)


def test_every_stage_prints_one_object(
    pipeline_folder: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pruned"
    made = answer(capsys, "prune", pipeline_folder, "--criterion", "magnitude", "--ratio", "0.5", "--out", out)
    assert made["params_after"] < made["params_before"]
    assert answer(capsys, "inspect", out, "--no-latency")["pruned"] is True
    tuned = answer(
        capsys, "finetune", out, "--data", image_folder, "--steps", 2, "--batch-size", 4, "--out", tmp_path / "tuned"
    )
    assert tuned["final_loss"] > 0
    drawn = answer(capsys, "sample", tmp_path / "tuned", "--num", 3, "--steps", 2, "--out", tmp_path / "images")
    assert drawn["num_images"] == 3
    metrics = answer(capsys, "evaluate", image_folder, image_folder, "--metrics", "ssim", "mse", "frechet_distance")
    assert list(metrics) == ["ssim", "mse", "frechet_distance"]
    assert metrics["ssim"] == pytest.approx(1)
    page = answer(capsys, "report", tmp_path, "--out", tmp_path / "report.html")
    assert page["report"] == str(tmp_path / "report.html")
    assert "data:image/png;base64," in (tmp_path / "report.html").read_text()


def test_the_exit_status_tells_wrong_usage_from_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path / "nowhere")]) == 1
    assert main(["inspect"]) == 2
    assert main([]) == 0
    assert "diffprune COMMAND --help" in capsys.readouterr().out


def test_an_interruption_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("diffprune.stages.inspect_stage.inspect_stage", interrupted)
    assert main(["inspect", "digits"]) == 130
    assert capsys.readouterr().err.endswith("diffprune: interrupted\n")


def test_no_result_is_held_to_the_device_or_the_number_of_workers_that_made_it() -> None:
    for kind in (kind for command in COMMANDS.values() if command.out for kind in command.options):
        assert kind.neutral >= {"device", "num_workers"} & kind.model_fields.keys(), kind


def test_a_number_or_a_word_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "digits", "--criterion", "magnitude", "--timestep-stride", "0"]) == 2
    told = capsys.readouterr().err
    assert told.count("--timestep-stride") == 1
    assert "expected an integer of at least 1, such as 16, or auto" in told


def test_no_stride_at_all_is_refused() -> None:
    with pytest.raises(OptionError, match="timestep_stride"):
        parse_options(PlanOptions, {"timestep_stride": None}, what="options")
