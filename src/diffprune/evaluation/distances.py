"""Distances between two sets of images, from their features."""

import torch
from torch import Tensor


def frechet_distance(features: Tensor, reference: Tensor) -> float:
    """Fréchet distance of two Gaussians fitted to features (N, D) and (M, D); in float64, at least 0.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Dowson and Landau 1982; Heusel et al. 2017). The trace of the
    root is the sum of the roots of the eigenvalues of C1^(1/2) C2 C1^(1/2), which is symmetric.
    """
    if min(len(features), len(reference)) < 2:
        raise ValueError(f"a covariance needs at least 2 images, got {len(features)} and {len(reference)}")
    first, second = features.double(), reference.double()
    gap = first.mean(0) - second.mean(0)
    c1, c2 = torch.cov(first.T), torch.cov(second.T)
    values, vectors = torch.linalg.eigh(c1)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    of_product = torch.linalg.eigvalsh(root @ c2 @ root).clamp(min=0)
    distance = gap.square().sum() + c1.trace() + c2.trace() - 2 * of_product.sqrt().sum()
    return max(float(distance), 0.0)
