"""Mean and covariance of image features: running sums in one pass, and .npz files.

A file holds `mu` and `sigma` as in pytorch-fid, and `mu_s` and `sigma_s` for sFID as in the reference files of
Dhariwal and Nichol 2021. Files of diffprune add the number of images and the protocol.
"""

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffprune.errors import DataError
from diffprune.evaluation.inception import LAYERS
from diffprune.evaluation.protocol import Protocol, read_protocol
from diffprune.runs.accumulator import Accumulator
from diffprune.runs.atomic_files import atomic_write
from diffprune.runs.notebook import html_table

ARRAYS = {"fid": ("pool", "mu", "sigma"), "sfid": ("spatial", "mu_s", "sigma_s")}
"""Metric -> layer of its features, and names of its mean and covariance in a file."""


@dataclass(frozen=True)
class Statistics:
    """Mean (D,) and covariance (D, D) of features, float64; the covariance divides by N - 1."""

    mu: Tensor
    sigma: Tensor


class Moments:
    """Running sums in float64 for the mean and covariance of float32 features that arrive in batches.

    Products of two float32 numbers are exact in float64. The rounding error of their sum is below the rounding error
    of the features themselves.
    """

    def __init__(self, name: str, num_features: int, sums: Accumulator) -> None:
        self._names = f"{name}-sum", f"{name}-products"
        self._running = sums
        self._sum = sums.zeros(self._names[0], num_features)
        self._products = sums.zeros(self._names[1], num_features, num_features)

    def add(self, features: Tensor) -> None:
        """Add features (N, D) to the sums."""
        batch = features.double()
        self._sum += batch.sum(0)
        self._products.addmm_(batch.T, batch)

    def statistics(self, num: int) -> Statistics:
        """Return the statistics of the `num` images that all ranks added; raises ValueError below two."""
        if num < 2:
            raise ValueError(f"a covariance needs at least 2 images, got {num}")
        total, products = (self._running.total(name) for name in self._names)
        mean = total / num
        return Statistics(mean, products.addr(mean, mean, alpha=-num) / (num - 1))


@dataclass(frozen=True)
class ImageStatistics:
    """Statistics of an image set per metric (`fid`, `sfid`).

    num_images and protocol are None where a file does not state them. details: options and inputs of the `stats` run.
    """

    by_metric: Mapping[str, Statistics]
    num_images: int | None
    protocol: Protocol | None
    details: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        num = "an unknown number of" if self.num_images is None else f"{self.num_images:,}"
        protocol = "unknown" if self.protocol is None else self.protocol.hash
        return f"ImageStatistics({', '.join(self.by_metric)}, {num} images, protocol {protocol})"

    def _repr_html_(self) -> str:
        facts = {} if self.protocol is None else self.protocol.as_dict()
        rows = [["metrics", ", ".join(self.by_metric)], ["images", str(self.num_images)], *map(list, facts.items())]
        return html_table(rows, "Statistics of Inception features")

    def save(self, path: str | Path) -> None:
        """Write an .npz file atomically."""
        assert self.protocol is not None
        arrays: dict[str, Any] = {}
        for metric, statistics in self.by_metric.items():
            _, mu, sigma = ARRAYS[metric]
            arrays |= {mu: statistics.mu.numpy(), sigma: statistics.sigma.numpy()}
        file = io.BytesIO()
        np.savez(
            file,
            num_images=np.array(self.num_images),
            protocol=np.array(json.dumps(self.protocol.as_dict())),
            details=np.array(json.dumps(self.details)),
            **arrays,
        )
        atomic_write(Path(path), file.getvalue())


def read_statistics(path: Path) -> ImageStatistics:
    """Read an .npz file of diffprune, pytorch-fid, clean-fid or ADM; nothing is unpickled.

    Raises DataError when the file is missing, damaged, or has no mean and covariance of Inception features.
    """
    if not path.is_file():
        raise DataError(f"no file {path}; expected statistics (.npz) as written by `diffprune stats`")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            by_metric = {
                metric: _statistics(path, layer, file[mu], file[sigma])
                for metric, (layer, mu, sigma) in ARRAYS.items()
                if mu in file.files and sigma in file.files
            }
            if not by_metric:
                raise DataError(f"{path} holds {', '.join(file.files) or 'no arrays'}; statistics need mu and sigma")
            if "protocol" not in file.files:
                return ImageStatistics(by_metric, None, None)
            return ImageStatistics(
                by_metric,
                int(file["num_images"]),
                read_protocol(json.loads(str(file["protocol"]))),
                json.loads(str(file["details"])),
            )
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as statistics: {error}") from error


def _statistics(path: Path, layer: str, mu: Any, sigma: Any) -> Statistics:
    size = LAYERS[layer]
    if mu.shape != (size,) or sigma.shape != (size, size):
        raise DataError(
            f"{path} has a mean of shape {mu.shape} and a covariance of {sigma.shape}, expected ({size},) and "
            f"({size}, {size}): features of another layer or network cannot be compared"
        )
    statistics = Statistics(torch.from_numpy(mu.astype(np.float64)), torch.from_numpy(sigma.astype(np.float64)))
    if not (statistics.mu.isfinite().all() and statistics.sigma.isfinite().all()):
        raise DataError(f"{path} holds values that are not finite; compute the statistics again")
    return statistics
