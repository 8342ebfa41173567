"""The rules of the house: public names, import direction, the README's commands."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import diffprune

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "diffprune"

ORDER = [
    ("errors", "options", "recipes", "records", "progress", "processes"),
    ("models",),
    ("sampling",),
    ("data",),
    ("groups",),
    ("criteria",),
    ("planning",),
    ("surgery",),
    ("recovery",),
    ("evaluation",),
    ("reporting",),
    ("stages",),
    ("cli",),
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}

PUBLIC = [
    "DataError", "DiffpruneError", "FolderError", "Group", "ManifestError", "ModelError", "OptionError", "Plan",
    "PlanError", "evaluate", "find_groups", "finetune", "load_pipeline", "plan", "prune", "read_plan", "sample",
    "train",
]  # fmt: skip


def imports_of(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return found


def modules() -> list[Path]:
    return [path for path in sorted(SOURCE.rglob("*.py")) if path != SOURCE / "__init__.py"]


def room_of(name: str) -> str:
    return name.removeprefix("diffprune.").split(".")[0]


def test_public_names_are_pinned_and_load() -> None:
    assert diffprune.__all__ == PUBLIC
    assert all(getattr(diffprune, name) is not None for name in PUBLIC)


def test_imports_point_one_way() -> None:
    wrong = []
    for path in modules():
        here = room_of(".".join(path.relative_to(SOURCE).with_suffix("").parts))
        for name in imports_of(path):
            if name.startswith("diffprune.") and RANK[room_of(name)] > RANK[here]:
                wrong.append(f"{path.relative_to(SOURCE)} imports {name}")
    assert not wrong


def test_criteria_do_not_know_each_other() -> None:
    shared = {"scores", "gradients", "__init__"}
    files = [path for path in (SOURCE / "criteria").glob("*.py") if path.stem not in shared]
    assert len(files) >= 4
    for path in files:
        siblings = {n for n in imports_of(path) if n.startswith("diffprune.criteria.")}
        assert siblings <= {f"diffprune.criteria.{name}" for name in shared}


def test_only_groups_and_costs_know_torch_pruning() -> None:
    users = {str(p.relative_to(SOURCE)) for p in modules() if any(n.startswith("torch_pruning") for n in imports_of(p))}
    assert users == {"groups/unet.py", "models/cost.py"}


def test_no_module_makes_one_scroll() -> None:
    assert {str(p): n for p in modules() if (n := len(p.read_text().splitlines())) > 400} == {}


def test_importing_the_package_imports_neither_torch_nor_diffusers() -> None:
    code = "import sys, diffprune; sys.exit(bool({'torch', 'diffusers', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


def readme_commands() -> list[str]:
    text = "\n".join(blocks("sh")).replace("\\\n", " ")
    return [line.split("  #")[0].strip() for line in text.splitlines() if line.startswith("diffprune ")]


def test_the_readme_names_its_two_commands_and_make_has_them() -> None:
    assert "make demo" in (ROOT / "README.md").read_text()
    assert "make test" in (ROOT / "README.md").read_text()
    assert {"demo:", "test:"} <= {line.split(" ")[0] for line in (ROOT / "Makefile").read_text().splitlines()}


SMALL = {"--num": "4", "--steps": "2", "--num-calibration-images": "8", "--timestep-stride": "250", "--batch-size": "4"}
"""What the test makes smaller in the README's commands; everything else is run as written."""


def test_the_readmes_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffprune.cli import COMMANDS, main

    monkeypatch.chdir(tmp_path)
    commands = readme_commands()
    assert len(commands) >= 6
    for line in commands:
        words = shlex.split(line)[1:]
        if words[0] in ("demo", "run"):
            continue  # minutes long: the slow tier runs them
        fields = {f"--{name.replace('_', '-')}" for kind in COMMANDS[words[0]].options for name in kind.model_fields}
        for flag, value in SMALL.items():
            if flag in words:
                words[words.index(flag) + 1] = value
            elif flag in fields and not (words[0] == "prune" and "--plan" in words):
                words += [flag, value]
        assert main(words) == 0, line


def test_the_readmes_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    quick = code.replace("ratio=0.3", "ratio=0.3, num_calibration_images=4, timestep_stride=250")
    assert quick != code
    names: dict[str, object] = {}
    exec(compile(quick, "README.md", "exec"), names)
    assert type(names["again"].unet) is diffprune.UNet2DModel
