"""Ridge regression from streaming sums: memory depends on the layer, not on the number of images."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Correction:
    """An addend for a layer's weight (groups, outputs, inputs) and bias (groups, outputs); None without a bias."""

    weight: Tensor
    bias: Tensor | None

    def of(self, inputs: Tensor) -> Tensor:
        """Return the change of the outputs: inputs (rows, groups, inputs) -> (rows, groups, outputs)."""
        change = torch.einsum("rgi,goi->rgo", inputs, self.weight.to(inputs.dtype))
        return change if self.bias is None else change + self.bias.to(inputs.dtype)


class ResidualSums:
    """Weighted second moments of inputs x and residuals r, in float64, for min_D sum w |r - D x - b|^2 + lam |D|^2.

    With a bias, moments are central. Inputs are shifted by the mean of the first batch, against cancellation.
    """

    def __init__(self, *, has_bias: bool) -> None:
        self.has_bias = has_bias
        self.weight = 0.0
        self.shift: Tensor | None = None

    def add(self, inputs: Tensor, residuals: Tensor, weights: Tensor) -> None:
        """Add rows: inputs (rows, groups, d), residuals (rows, groups, o), non-negative weights (rows,)."""
        if self.shift is None:
            self.shift = inputs.double().mean(0) if self.has_bias else torch.zeros_like(inputs[0], dtype=torch.float64)
            _, groups, d = inputs.shape
            o = residuals.shape[2]
            sums = {"x": (groups, d), "r": (groups, o), "xx": (groups, d, d), "xr": (groups, d, o)}
            new = {name: torch.zeros(shape, dtype=torch.float64, device=inputs.device) for name, shape in sums.items()}
            self.x, self.r, self.xx, self.xr = new.values()
        root = weights.to(inputs.dtype).sqrt()[:, None, None]
        x = ((inputs - self.shift.to(inputs.dtype)) * root).transpose(0, 1)
        r = (residuals * root).transpose(0, 1)
        self.xx += x.transpose(1, 2) @ x
        self.xr += x.transpose(1, 2) @ r
        if self.has_bias:
            self.x += (x * root[None, :, :, 0]).sum(1)
            self.r += (r * root[None, :, :, 0]).sum(1)
        self.weight += float(weights.double().sum())

    def solve(self, ridge: float) -> Correction | None:
        """Solve for lam = ridge * mean diagonal of sum w x x^T; None if that matrix is not positive definite."""
        xx, xr = self._central_moments()
        lam = ridge * xx.diagonal(dim1=1, dim2=2).mean(1)
        factor, failed = torch.linalg.cholesky_ex(xx + torch.diag_embed(lam[:, None].expand(xx.shape[:2])))
        if bool(failed.any()):
            return None
        weight = torch.cholesky_solve(xr, factor).transpose(1, 2)
        bias = None
        if self.has_bias:
            assert self.shift is not None
            means = self.x / self.weight + self.shift
            bias = self.r / self.weight - (weight @ means[:, :, None])[:, :, 0]
        return Correction(weight, bias) if bool(weight.isfinite().all()) else None

    def explained(self, correction: Correction) -> float:
        """Return by how much a correction from `solve` lowers sum w |r|^2: 0 or more."""
        xx, xr = self._central_moments()
        d = correction.weight
        by_mean = float(self.r.square().sum()) / self.weight if self.has_bias else 0.0
        return by_mean + float(2 * (d.transpose(1, 2) * xr).sum() - ((d @ xx) * d).sum())

    def _central_moments(self) -> tuple[Tensor, Tensor]:
        if not self.has_bias:
            return self.xx, self.xr
        xx = self.xx - self.x[:, :, None] * self.x[:, None, :] / self.weight
        return xx, self.xr - self.x[:, :, None] * self.r[:, None, :] / self.weight
