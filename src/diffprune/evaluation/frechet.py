"""Fréchet distance of two image sets, from their features or from means and covariances."""

import numpy as np
import torch
from scipy.linalg import lapack
from torch import Tensor


def frechet_distance(features: Tensor, reference: Tensor) -> float:
    """Return the Fréchet distance of Gaussians fitted to features (N, D) and (M, D), in float64, at least 0.

    Raises ValueError below two images on either side.
    """
    if min(len(features), len(reference)) < 2:
        raise ValueError(f"a covariance needs at least 2 images, got {len(features)} and {len(reference)}")
    first, second = features.double(), reference.double()
    return gaussian_distance(first.mean(0), torch.cov(first.T), second.mean(0), torch.cov(second.T))


def gaussian_distance(mu: Tensor, sigma: Tensor, reference_mu: Tensor, reference_sigma: Tensor) -> float:
    """Return the Fréchet distance of two Gaussians with means (D,) and covariances (D, D), in float64, at least 0.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Dowson and Landau 1982; Heusel et al. 2017). With C1 = L L^T, the
    trace of the root is the sum of square roots of the eigenvalues of L^T C2 L, which is symmetric.
    """
    c1, c2 = (np.atleast_2d(sigma.double().cpu().numpy()) for sigma in (sigma, reference_sigma))
    factor = _factor(c1)
    eigenvalues = torch.linalg.eigvalsh(torch.from_numpy(factor.T @ c2 @ factor)).clamp(min=0)
    gap = (mu.double().cpu() - reference_mu.double().cpu()).square().sum()
    return max(float(gap + c1.trace() + c2.trace() - 2 * eigenvalues.sqrt().sum()), 0.0)


def _factor(covariance: np.ndarray) -> np.ndarray:
    """Return L (D, rank) with L L^T = covariance, also where it is singular: pivoted Cholesky (LAPACK dpstrf)."""
    lower, pivots, rank, _ = lapack.dpstrf(covariance, lower=1)
    factor = np.zeros((len(covariance), rank))
    factor[pivots - 1] = np.tril(lower)[:, :rank]
    return factor
