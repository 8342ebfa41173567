"""Mean and covariance of features, gathered in one pass, and the files that hold them.

A file is an .npz with `mu` and `sigma` as pytorch-fid writes and reads it (and `mu_s`, `sigma_s` for sFID, as in
the reference files of Dhariwal and Nichol 2021); ours add the number of images and the protocol.
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
from diffprune.processes import process_state, summed
from diffprune.records import write_whole

ARRAYS = {"fid": ("pool", "mu", "sigma"), "sfid": ("spatial", "mu_s", "sigma_s")}
"""Metric -> layer of its features, names of its arrays in a file."""


@dataclass(frozen=True)
class Statistics:
    """Mean (D,) and covariance (D, D) of features, float64; the covariance divides by N - 1."""

    mu: Tensor
    sigma: Tensor


class Moments:
    """Mean and covariance of features that come in batches, in float64 and in memory that does not grow.

    Batches are merged by the differences of their means (Chan, Golub and LeVeque 1983, eq. 2.1), which keeps the
    digits that sums of squares would lose.
    """

    def __init__(self, num_features: int) -> None:
        self.num = 0
        self._mean = torch.zeros(num_features, dtype=torch.float64)
        self._scatter = torch.zeros(num_features, num_features, dtype=torch.float64)

    def add(self, features: Tensor) -> None:
        """Take in features (N, D)."""
        batch = features.to(self._mean.device, torch.float64)
        mean = batch.mean(0)
        centred, gap = batch - mean, mean - self._mean
        total = self.num + len(batch)
        self._scatter.addmm_(centred.T, centred)
        self._scatter.addr_(gap, gap, alpha=self.num * len(batch) / total)
        self._mean += gap * (len(batch) / total)
        self.num = total

    def of_all_processes(self, device: str) -> "Moments":
        """What all processes took in together; in float64 as everything here.

        The sum of the deviations from the common mean, by the parallel axis theorem.
        """
        if process_state(device).num_processes == 1:
            return self
        both = Moments(len(self._mean))
        weighted = summed(torch.cat([self._mean * self.num, torch.tensor([float(self.num)])]), device)
        both.num = int(weighted[-1])
        both._mean = weighted[:-1] / weighted[-1]
        gap = self._mean - both._mean
        both._scatter = summed(self._scatter.addr(gap, gap, alpha=self.num), device)
        return both

    def statistics(self) -> Statistics:
        """What was taken in; raises ValueError below two images."""
        if self.num < 2:
            raise ValueError(f"a covariance needs at least 2 images, got {self.num}")
        return Statistics(self._mean.clone(), self._scatter / (self.num - 1))


@dataclass(frozen=True)
class ImageStatistics:
    """Statistics of an image set per metric (`fid`, `sfid`).

    num_images and protocol are None where a file does not say them; details: how and from what it was made.
    """

    by_metric: Mapping[str, Statistics]
    num_images: int | None
    protocol: Protocol | None
    details: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write an .npz, whole."""
        assert self.protocol is not None
        arrays: dict[str, Any] = {}
        for metric, found in self.by_metric.items():
            _, mu, sigma = ARRAYS[metric]
            arrays |= {mu: found.mu.numpy(), sigma: found.sigma.numpy()}
        file = io.BytesIO()
        np.savez(
            file,
            num_images=np.array(self.num_images),
            protocol=np.array(json.dumps(self.protocol.as_dict())),
            details=np.array(json.dumps(self.details)),
            **arrays,
        )
        write_whole(path, file.getvalue())


def read_statistics(path: Path) -> ImageStatistics:
    """Read an .npz of ours or of pytorch-fid, clean-fid or ADM; nothing is unpickled.

    Raises DataError when it is missing, damaged, or holds no mean and covariance of Inception features.
    """
    if not path.is_file():
        raise DataError(f"no file {path}; expected statistics (.npz), as `diffprune stats` writes them")
    try:
        with path.open("rb") as whole, np.load(whole, allow_pickle=False) as file:
            by_metric = {
                metric: _statistics(path, layer, file[mu], file[sigma])
                for metric, (layer, mu, sigma) in ARRAYS.items()
                if mu in file.files and sigma in file.files
            }
            if not by_metric:
                raise DataError(f"{path} holds {', '.join(file.files) or 'nothing'}; statistics need mu and sigma")
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
    found = Statistics(torch.from_numpy(mu.astype(np.float64)), torch.from_numpy(sigma.astype(np.float64)))
    if not (found.mu.isfinite().all() and found.sigma.isfinite().all()):
        raise DataError(f"{path} holds values that are not finite")
    return found
