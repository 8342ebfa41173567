"""A mistyped path costs no import of torch."""

import subprocess
import sys
from pathlib import Path

import pytest

WORDS = {
    "model": (
        ["inspect", "./nowhere"],
        "no folder or file ./nowhere; expected a path, a hub id such",
    ),
    "teacher": (["finetune", "digits", "--teacher", "nowhere", "--out", "out"], "no folder or file nowhere"),
    "data": (["plan", "digits", "--data", "photos/nowhere/"], "no images at photos/nowhere/: no folder or file"),
    "images": (["evaluate", "/nowhere", "digits"], "no images at /nowhere"),
    "reference": (["evaluate", "digits", "nowhere.npz"], "no images at nowhere.npz"),
}


@pytest.mark.parametrize("case", WORDS)
def test_a_missing_input_is_refused_without_torch(case: str, tmp_path: Path) -> None:
    words, expected = WORDS[case]
    code = (
        "import sys\n"
        "from diffprune.cli.main import main\n"
        f"assert main({words!r}) == 1\n"
        "assert not {'torch', 'diffusers'} & set(sys.modules), 'a heavy import'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(f"diffprune: {expected}")
    assert list(tmp_path.iterdir()) == []
