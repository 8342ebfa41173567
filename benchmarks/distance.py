"""Fréchet distance of two Gaussians: the formula with scipy's sqrtm against ours.

    python benchmarks/distance.py --out benchmarks/results/distance

pytorch-fid uses the formula with scipy's sqrtm. The features are random; the variance of feature i is proportional to
1 / i, about as Inception's.
"""

import argparse
from functools import partial

import numpy as np
import torch
from scipy.linalg import sqrtm

from diffprune.evaluation.feature_statistics import Statistics
from diffprune.evaluation.frechet import gaussian_distance
from rounds import Row, alternate, arguments, faster, medians, record, seconds

TARGET, TOLERANCE = 5.0, 1e-6
"""Speedup to reach, and largest relative difference."""


def statistics(num_features: int, num_images: int, seed: int) -> Statistics:
    random = np.random.default_rng(seed)
    scales = np.arange(1, num_features + 1) ** -0.5
    mixing = np.linalg.qr(random.standard_normal((num_features, num_features)))[0]
    features = random.standard_normal((num_images, num_features)) * scales @ mixing + 0.1 * random.random(num_features)
    return Statistics(torch.from_numpy(features.mean(0)), torch.from_numpy(np.cov(features, rowvar=False)))


def plain(first: Statistics, second: Statistics) -> float:
    """Return the distance as pytorch-fid computes it."""
    c1, c2 = first.sigma.numpy(), second.sigma.numpy()
    root = sqrtm(c1 @ c2)
    gap = (first.mu - second.mu).numpy()
    return float(gap @ gap + np.trace(c1) + np.trace(c2) - 2 * np.trace(root.real))


def ours(first: Statistics, second: Statistics) -> float:
    return gaussian_distance(first.mu, first.sigma, second.mu, second.sigma)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-features", type=int, default=2048)
    parser.add_argument("--num-images", type=int, default=10_000)
    a = arguments(parser, {"num_features": 256, "num_images": 1000})
    first, second = (statistics(a.num_features, a.num_images, seed) for seed in range(2))
    distances: dict[str, float] = {}

    def measure(name: str) -> None:
        distances[name] = (plain if name == "sqrtm" else ours)(first, second)

    found = alternate({name: partial(seconds, partial(measure, name)) for name in ("sqrtm", "ours")}, a.rounds)
    middle = medians(found)
    gap = abs(distances["ours"] / distances["sqrtm"] - 1)
    rows = [
        faster(f"Fréchet distance, {a.num_features} features", middle["ours"], middle["sqrtm"], TARGET),
        Row("Fréchet distance, relative difference to sqrtm's", "", gap, TOLERANCE, at_most=True),
    ]
    record("distance", a, found, rows, distances=distances)


if __name__ == "__main__":
    main()
