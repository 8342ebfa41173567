"""Fit a norm's scale and shift per channel to the output of the original norm."""

from typing import Any, cast

import torch
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn

from diffprune.artifact.slicing import channel_axis
from diffprune.pruning.compensation.layer_fit import SAME, TINY, Fit

NORMS = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, RMSNorm)
"""Norms that can have a weight per channel."""


class NormFit:
    """Accumulates moments of a norm's output and of the original's, then corrects weight and bias in place.

    The scale and shift of each channel solve a least-squares problem of its own.
    """

    def __init__(self, path: str, layer: nn.Module) -> None:
        self.path, self.layer = path, cast(Any, layer)
        self.moments: dict[bool, Tensor] = {}

    def add(self, x: Tensor, target: Tensor, weights: Tensor, *, held_out: bool) -> None:
        """Add one batch; arguments as in `LayerFit.add`."""
        output = self.layer(x).double()
        axis = channel_axis(self.layer, output)
        w = weights.double().view(-1, *[1] * (output.ndim - 1))
        y, t = output.movedim(axis, -1), target.double().movedim(axis, -1)
        products = (torch.ones_like(y), y, t, y * y, y * t, t * t)
        moments = torch.stack([(w * product).flatten(0, -2).sum(0) for product in products])
        self.moments[held_out] = self.moments[held_out] + moments if held_out in self.moments else moments

    def finish(self) -> Fit | None:
        """Correct the norm and return its fit; None if its output is that of the original, or not comparable."""
        if len(self.moments) < 2:
            return None
        num, y, t, yy, yt, _ = self.moments[False]
        bias: Tensor | None = getattr(self.layer, "bias", None)
        if bias is None:
            scale = torch.where(yy > 0, yt / yy.clamp(min=TINY), 1.0)
            shift = torch.zeros_like(scale)
        else:
            spread, common = yy / num - (y / num) ** 2, yt / num - y * t / num**2
            scale = torch.where(spread > 0, common / spread.clamp(min=TINY), 1.0)
            shift = (t - scale * y) / num
        identity, zero = torch.ones_like(scale), torch.zeros_like(scale)
        before, after = (
            tuple(_error(self.moments[part], *by) for part in (False, True))
            for by in ((identity, zero), (scale, shift))
        )
        if before[0] <= SAME:
            return None
        changed = after[1] < before[1]
        if changed:
            with torch.no_grad():
                self.layer.weight *= scale.to(self.layer.weight)
                if bias is not None:
                    bias.mul_(scale.to(bias)).add_(shift.to(bias))
        final = after if changed else before
        return Fit(self.path, (before[0], final[0]), (before[1], final[1]), changed)


def _error(moments: Tensor, scale: Tensor, shift: Tensor) -> float:
    """Return the squared error of scale * y + shift, over the squared target."""
    num, y, t, yy, yt, tt = moments
    error = scale**2 * yy + shift**2 * num + tt + 2 * (scale * shift * y - scale * yt - shift * t)
    return float(error.sum() / tt.sum().clamp(min=TINY))
