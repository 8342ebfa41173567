"""The examples run from top to bottom and print their results."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("prune_ddpm", "recovered: SSIM 0."),
        ("prune_text_to_image", "3 images in"),
        ("prune_your_own_module", "relative squared change of the output: 0."),
    ],
)
def test_an_example_runs(name: str, printed: str, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", EXAMPLES / f"{name}.py"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert printed in done.stdout


def test_every_example_is_run() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {"prune_ddpm", "prune_text_to_image", "prune_your_own_module"}
