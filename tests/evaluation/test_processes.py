"""Two processes make the statistics and the numbers of one."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import diffprune
from diffprune.evaluation.feature_statistics import read_statistics
from diffprune.evaluation.image_preparation import Preparation
from diffprune.evaluation.inception_features import extract_features, open_image_set
from diffprune.options import EvaluateOptions
from tests.conftest import photos, quick_inception
from tests.helpers.forks import Forks

METRICS = ("fid", "kid", "ssim", "mse")
MORE = {
    "kid_subset_size": 2, "kid_subsets": 3, "batch_size": 1, "on_corrupt": "skip", "device": "cpu",
}  # fmt: skip

BOTH = """
import sys
from pathlib import Path

import torch

from tests import conftest
import diffprune.evaluation.inception_features
import diffprune.evaluation.inception_evaluation
import diffprune.stages.stats_stage
from diffprune.errors import DataError
from diffprune.evaluation.image_preparation import Preparation
from diffprune.evaluation.inception_features import extract_features, open_image_set
from diffprune.options import EvaluateOptions, StatsOptions
from diffprune.runs.distributed import process_state, leave_process_group
from diffprune.stages.evaluate_stage import evaluate_stage
from diffprune.stages.stats_stage import stats_stage

diffprune.evaluation.inception_evaluation.load_inception = conftest.quick_inception
diffprune.stages.stats_stage.load_inception = conftest.quick_inception
diffprune.evaluation.inception_features.embed = conftest.quick_embed

images, reference, damaged, out = sys.argv[1:]
rank = process_state("cpu").process_index
options = EvaluateOptions(metrics={metrics}, **{more})
evaluate_stage(images, reference, options, Path(out) / "metrics")
stats_stage(damaged, StatsOptions(batch_size=1, on_corrupt="skip", device="cpu"), Path(out) / "stats.npz")
inception = conftest.quick_inception(None, torch.device("cpu"))
found = extract_features(open_image_set(damaged, None, Preparation()), ("kid",), inception, options)
torch.save(found.by_layer, Path(out) / f"kept-{{rank}}.pt")
try:
    failing = options.model_copy(update={{"on_corrupt": "fail"}})
    extract_features(open_image_set(damaged, None, Preparation()), ("kid",), inception, failing)
except DataError as error:
    (Path(out) / f"error-{{rank}}").write_text(str(error))
leave_process_group()
"""


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Three images of which the second cannot be read."""
    folder = photos(tmp_path / "damaged", 3)
    (folder / "0001.png").write_bytes((folder / "0001.png").read_bytes()[:60])
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As a launcher gives each of its processes: another number of threads sums in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("quick_network", "one_thread")
def test_two_processes_find_the_numbers_of_one(
    forks: Forks, photo_sets: tuple[Path, Path], damaged: Path, tmp_path: Path
) -> None:
    out = tmp_path / "two"
    out.mkdir()
    script = tmp_path / "both.py"
    script.write_text(BOTH.format(more=MORE, metrics=METRICS))
    two = forks.run([script, *photo_sets, damaged, out], num_processes=2)
    assert two.status == 0, two.output

    alone = diffprune.evaluate(*photo_sets, metrics=METRICS, **MORE)
    record = json.loads((out / "metrics" / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["result"]["protocol"] == alone["protocol"]
    assert record["result"]["kid_mean"] == alone["kid_mean"]
    for metric in ("fid", "ssim", "mse"):
        assert record["result"][metric] == pytest.approx(alone[metric], rel=1e-6), metric

    inception = quick_inception(None, torch.device("cpu"))
    found = extract_features(
        open_image_set(str(damaged), None, Preparation()), ("kid",), inception, EvaluateOptions(**MORE)
    )
    assert found.num_corrupt == 1
    for rank in range(2):
        assert torch.equal(torch.load(out / f"kept-{rank}.pt")["pool"], found.by_layer["pool"])
        assert "0001.png is not a readable image" in (out / f"error-{rank}").read_text()
    theirs = read_statistics(out / "stats.npz")
    assert (theirs.num_images, theirs.details["num_corrupt"]) == (2, 1)
    ours = diffprune.stats(damaged, batch_size=1, on_corrupt="skip", device="cpu").by_metric["fid"]
    torch.testing.assert_close(theirs.by_metric["fid"].mu, ours.mu, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(theirs.by_metric["fid"].sigma, ours.sigma, rtol=1e-12, atol=1e-12)
