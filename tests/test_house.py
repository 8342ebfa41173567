"""The rules of the house: public names, import direction, the README's commands."""

import ast
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

import diffprune
from diffprune.data.digits import digits
from diffprune.pipelines.builtin import PIPELINES

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "diffprune"

FLOORS = [
    "errors", "options", "runs", "architectures", "artifact", "compute", "pipelines", "data", "conversion", "sampling",
    "calibration", "groups", "criteria", "planning", "pruning", "training", "evaluation", "reporting", "stages",
    "recipes", "api", "cli",
]  # fmt: skip
"""The rooms of the package. A module imports from its own room and from rooms before it."""

RANK = {name: rank for rank, name in enumerate(FLOORS)}

PUBLIC = [
    "AttentionLayout", "ClassConditionalLDMPipeline", "ClassEmbedding", "DataError", "DiffpruneError",
    "FeedForwardLayout", "FolderError", "Group", "ImageStatistics", "ManifestError", "ModelError",
    "OptionError", "Plan", "PlanError", "Recipe", "ReportPage", "Results", "analyze_plan",
    "analyze_sensitivity", "analyze_stages", "convert", "evaluate", "find_groups", "finetune", "inspect",
    "load_pipeline", "plan", "prepare_data", "prune", "read_plan", "read_recipe", "register_family", "report",
    "run", "sample", "stats", "train", "train_classifier",
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
    return [path for path in sorted(SOURCE.rglob("*.py")) if path.parent != SOURCE or path.stem == "errors"]


def room_of(name: str) -> str:
    return name.removeprefix("diffprune.").split(".")[0]


def test_public_names_are_pinned_and_load() -> None:
    assert diffprune.__all__ == PUBLIC
    assert all(getattr(diffprune, name) is not None for name in PUBLIC)


def test_no_public_name_is_a_room() -> None:
    assert not {*PUBLIC} & {path.stem for path in SOURCE.iterdir()}


def test_imports_point_one_way() -> None:
    wrong = []
    for path in modules():
        here = room_of(".".join(path.relative_to(SOURCE).with_suffix("").parts))
        for name in imports_of(path):
            if name.startswith("diffprune.") and RANK[room_of(name)] > RANK[here]:
                wrong.append(f"{path.relative_to(SOURCE)} imports {name}")
    assert not wrong


def test_criteria_do_not_know_each_other() -> None:
    shared = {"scores", "score_pass", "unit_gradients", "activation_hooks", "block_batches", "__init__"}
    files = [path for path in (SOURCE / "criteria").glob("*.py") if path.stem not in shared]
    assert len(files) >= 4
    for path in files:
        siblings = {n for n in imports_of(path) if n.startswith("diffprune.criteria.")}
        assert siblings <= {f"diffprune.criteria.{name}" for name in shared}


def test_no_stage_imports_another() -> None:
    files = [path for path in (SOURCE / "stages").glob("*.py") if path.stem != "__init__"]
    assert len(files) >= 10
    wrong = {path.stem: found for path in files if (found := [n for n in imports_of(path) if ".stages" in n])}
    assert wrong == {}


def test_only_groups_and_costs_know_torch_pruning() -> None:
    users = {str(p.relative_to(SOURCE)) for p in modules() if any(n.startswith("torch_pruning") for n in imports_of(p))}
    assert users == {"groups/channel_groups.py", "compute/cost.py"}


def test_no_module_makes_one_scroll() -> None:
    assert {str(p): n for p in modules() if (n := len(p.read_text().splitlines())) > 400} == {}


def test_no_two_modules_share_a_name() -> None:
    names = Counter(path.stem for path in modules() if path.stem != "__init__")
    assert [name for name, num in names.items() if num > 1] == []


def test_every_floor_is_a_room_and_no_room_is_crowded() -> None:
    rooms = {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in modules()}
    assert rooms == set(FLOORS)
    assert {str(folder): num for folder in SOURCE.rglob("*") if (num := len([*folder.glob("*.py")])) > 20} == {}


def test_no_room_has_the_name_of_a_public_function() -> None:
    """Importing a room sets an attribute of the package, which would hide the function."""
    assert set(FLOORS[1:]) & set(PUBLIC) == set()


def test_importing_the_package_imports_neither_torch_nor_diffusers() -> None:
    code = "import sys, diffprune; sys.exit(bool({'torch', 'diffusers', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).with_suffix("").as_posix()


PAGES_WITH_CODE = [
    page
    for page in PAGES
    if re.search("^```(sh|python)$", page.read_text(), flags=re.MULTILINE) and page.stem != "add-a-family"
]
"""The pages that a test here runs; `tests/architectures/test_families.py` runs the page on families."""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def commands(page: Path) -> list[str]:
    text = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
    return [line.split("  #")[0].strip() for line in text.splitlines() if line.startswith("diffprune ")]


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists() and not generated(page.parent / link)] == []


def generated(path: Path) -> bool:
    """Whether docs/generate.py makes this page; building the site checks links into it."""
    path, docs = path.resolve(), ROOT / "docs"
    return path.is_relative_to(docs) and path.relative_to(docs).as_posix() in generate().pages()


@cache
def generate() -> ModuleType:
    spec = spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES[3:], ids=page_name)
def test_a_page_opens_with_what_the_reader_will_have_and_stays_short(page: Path) -> None:
    lines = page.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert lines[2].startswith("After this page you ")
    assert len(lines) <= 120
    items = re.findall(r"^ *[-*] .*(?:\n +\S.*)*", page.read_text(), flags=re.MULTILINE)
    assert [item for item in items if len(item.splitlines()) > 4] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_the_readme_names_its_two_commands_and_make_has_them() -> None:
    assert "make demo" in (ROOT / "README.md").read_text()
    assert "make test" in (ROOT / "README.md").read_text()
    assert {"demo:", "test:"} <= {line.split(" ")[0] for line in (ROOT / "Makefile").read_text().splitlines()}


SMALL = {
    "--num": "4", "--steps": "2", "--num-stages": "2", "--num-calibration-images": "8", "--timestep-stride": "250",
    "--batch-size": "4", "--num-compensation-images": "16",
}  # fmt: skip
"""What the test makes smaller in the commands of the pages; everything else is run as written."""

SMALL_PYTHON = {
    "ratio=0.3": "ratio=0.3, num_calibration_images=4, timestep_stride=250", "steps=1000": "steps=2",
    "prune(pipe, plan)": "prune(pipe, plan, num_compensation_images=16)",
}  # fmt: skip


def small(line: str) -> list[str]:
    from diffprune.cli.commands import COMMANDS

    words = shlex.split(line)[1:]
    name = next(name for name in COMMANDS if words[: len(name.split())] == name.split())
    planned = words[0] == "prune" and "--plan" in words
    fields = {f"--{field.replace('_', '-')}" for kind in COMMANDS[name].options for field in kind.model_fields}
    for flag, value in SMALL.items():
        if flag in words:
            words[words.index(flag) + 1] = value
        elif flag in fields and (not planned or flag == "--num-compensation-images") and needs_images(words, flag):
            words += [flag, value]
    return words


def needs_images(words: list[str], flag: str) -> bool:
    return flag != "--timestep-stride" or "--data" in words


LONG_PAGES = (
    "README", "docs/tutorial", "docs/how-to/prune-your-own-model", "docs/how-to/prune-a-large-model",
    "docs/how-to/choose-a-criterion", "docs/how-to/choose-what-to-remove",
)  # fmt: skip


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow if page_name(page) in LONG_PAGES else ()) for page in PAGES_WITH_CODE],
    ids=page_name,
)
def test_the_commands_and_the_python_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page is run from top to bottom in a folder that holds `my-model`, `photos` and, for some, `pruned`."""
    from diffprune.cli.main import main

    monkeypatch.chdir(tmp_path)
    shutil.copytree(PIPELINES["digits"], tmp_path / "my-model")
    (tmp_path / "photos").mkdir()
    for index, image in enumerate(digits()[0][:12]):
        image.save(tmp_path / "photos" / f"{index}.png")
    lines = commands(page)
    assert lines or blocks(page, "python")
    if any(line.startswith("diffprune finetune pruned") for line in lines) and "--out pruned" not in "".join(lines):
        assert main(["prune", "my-model", "--criterion", "magnitude", "--out", "pruned"]) == 0
    for line in lines:
        if not line.startswith(("diffprune demo", "diffprune run")):  # minutes long: the slow tier runs them
            assert main(small(line)) == 0, line
    for code in blocks(page, "python"):
        for written, smaller in SMALL_PYTHON.items():
            code = code.replace(written, smaller)
        exec(compile(code, page.name, "exec"), {})
