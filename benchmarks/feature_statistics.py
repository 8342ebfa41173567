"""Statistics of Inception features: pytorch-fid against `diffprune stats`, with the same network on the same images.

    python benchmarks/feature_statistics.py --out benchmarks/results/feature-statistics

Each way runs its command with its defaults, from images to a file of statistics, without imports. pytorch-fid reads
images in worker processes, one per core. The network has random weights that preserve the scale of activations; the
images are random color blocks.
"""

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from pytorch_fid import fid_score, inception
from torchvision.models import inception_v3

from diffprune.evaluation.feature_statistics import ARRAYS
from diffprune.options import StatsOptions
from diffprune.stages.stats_stage import stats_stage
from rounds import Row, add_device, alternate, arguments, faster, medians, record, seconds

TARGET, TOLERANCE = 1.5, 1e-3
"""Speedup to reach, and largest relative difference of means and covariances."""


def random_weights(path: Path) -> Path:
    """Write random weights with the names and shapes of the published ones, which both packages load."""
    with torch.device("meta"):
        shapes = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False).state_dict()
    generator = torch.Generator().manual_seed(0)

    def values(name: str, like: Any) -> Any:
        if name.endswith("num_batches_tracked"):
            return torch.tensor(0)
        if name.endswith(("bn.weight", "running_var")):
            return 0.75 + 0.5 * torch.rand(like.shape, generator=generator)
        scale = (2 / like[0].numel()) ** 0.5 if like.dim() > 1 else 0.1
        return scale * torch.randn(like.shape, generator=generator)

    torch.save({name: values(name, like) for name, like in shapes.items()}, path)
    return path


def random_images(folder: Path, num: int, size: int) -> Path:
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(num):
        coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((size, size), Image.Resampling.NEAREST).save(folder / f"{index:06d}.png")
    return folder


@contextmanager
def weights_for_pytorch_fid(path: Path) -> Iterator[None]:
    """Make pytorch-fid load this file instead of downloading one, without a progress bar."""
    fetch, bar = inception.load_state_dict_from_url, fid_score.tqdm
    inception.load_state_dict_from_url = lambda *_, **__: torch.load(path)
    fid_score.tqdm = lambda batches: batches
    try:
        yield
    finally:
        inception.load_state_dict_from_url, fid_score.tqdm = fetch, bar


def plain(images: Path, out: Path, device: str) -> None:
    """Run `pytorch-fid --save-stats`."""
    num_workers = min(8, len(os.sched_getaffinity(0)))
    fid_score.save_fid_stats([str(images), str(out)], 50, torch.device(device), 2048, num_workers)


def ours(images: Path, out: Path, weights: Path, device: str) -> None:
    """Run `diffprune stats`."""
    stats_stage(str(images), StatsOptions(inception_weights=weights, device=device), out)


def difference(first: Path, second: Path) -> float:
    """Return the larger relative difference of means and of covariances, by their norms."""
    _, mu, sigma = ARRAYS["fid"]
    with np.load(first) as one, np.load(second) as other:
        gaps = [np.linalg.norm(one[name] - other[name]) / np.linalg.norm(other[name]) for name in (mu, sigma)]
    return float(max(gaps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num", type=int, default=256, help="images")
    parser.add_argument("--size", type=int, default=32, help="height and width of the images in pixels")
    add_device(parser)
    a = arguments(parser, {"num": 16})
    with TemporaryDirectory() as work_folder:
        folder = Path(work_folder)
        weights, images = random_weights(folder / "weights.pth"), random_images(folder / "images", a.num, a.size)
        files = {name: folder / f"{name}.npz" for name in ("pytorch-fid", "ours")}

        def measure(name: str, work: Callable[[], None]) -> Any:
            files[name].unlink(missing_ok=True)
            return seconds(work)

        with weights_for_pytorch_fid(weights):
            found = alternate(
                {
                    "pytorch-fid": lambda: measure(
                        "pytorch-fid", lambda: plain(images, files["pytorch-fid"], a.device)
                    ),
                    "ours": lambda: measure("ours", lambda: ours(images, files["ours"], weights, a.device)),
                },
                a.rounds,
            )
        gap = difference(files["ours"], files["pytorch-fid"])
    middle = medians(found)
    rows = [
        faster(
            "statistics of features", middle["ours"], middle["pytorch-fid"], TARGET, unit="images/s", amount=a.num
        ),
        Row("statistics, relative difference to pytorch-fid's", "", gap, TOLERANCE, at_most=True),
    ]  # fmt: skip
    record("feature-statistics", a, found, rows, pytorch_fid=version("pytorch-fid"))


if __name__ == "__main__":
    main()
