"""The fit of one convolution or linear layer: its output brought nearer to what the original gave."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from diffprune.compute.unfold import inputs_at, outputs_at, sample_positions
from diffprune.pruning.compensation.ridge import Correction, ResidualSums

RIDGES = (1e-8, 1e-6, 1e-4, 1e-2)
"""Shares of the mean diagonal that are tried; the one with the least error on held-out images is taken."""

SAME = 1e-10
"""Squared error over squared target below which a layer already gives what the original gave."""

ROWS = 12288
"""Positions of a layer's output that are looked at, in all images of the fit together."""

TINY = 1e-30
"""What divisors are kept above."""


@dataclass(frozen=True)
class Fit:
    """How one layer was fitted: squared error over squared target, before and after.

    fitted, held_out: (before, after) on the images of the fit and on the others. changed: False where the layer stayed
    as it was, since it was ill-conditioned or no correction was better on held-out images.
    """

    path: str
    fitted: tuple[float, float]
    held_out: tuple[float, float]
    changed: bool


class LayerFit:
    """Collects the rows of a layer, batch by batch, then corrects its weight and bias in place."""

    def __init__(self, path: str, layer: nn.Module, generator: torch.Generator, per_image: int) -> None:
        self.path, self.layer = path, cast(Any, layer)
        self.generator, self.per_image = generator, per_image
        self.sums = ResidualSums(has_bias=layer.bias is not None)
        self.held_out: list[tuple[Tensor, Tensor, Tensor]] = []
        self.squares = {False: 0.0, True: 0.0}  # of targets, by whether they are held out
        self.error = 0.0

    def add(self, x: Tensor, target: Tensor, weights: Tensor, *, held_out: bool) -> None:
        """Add one batch, at most `per_image` positions of each image.

        x: the layer's input as it is now. target: what the original gave, kept rows only. weights: (entries,),
        of the first dimension of both.
        """
        places = sample_positions(self.layer, x, self.per_image, self.generator)
        inputs, targets = inputs_at(self.layer, x, places), outputs_at(self.layer, target, places)
        weight = _matrix(self.layer).to(x.device)
        now = torch.einsum("rgi,goi->rgo", inputs, weight)
        if self.layer.bias is not None:
            now = now + self.layer.bias.view(weight.shape[:2]).to(x.device)
        residuals = targets.to(now.dtype).reshape(now.shape) - now
        by_row = weights[places.entries]
        squares, error = _squares(targets[:, None], by_row), _squares(residuals, by_row)
        self.squares[held_out] += squares
        if error <= SAME * squares:
            return
        if held_out:
            self.held_out.append((inputs, residuals, by_row))
        else:
            self.error += error
            self.sums.add(inputs, residuals, by_row)

    def finish(self) -> Fit | None:
        """Correct the layer; None where it gives what the original gave, or cannot be compared with it."""
        if self.error <= SAME * self.squares[False]:
            return None
        least, best = self._held_out_error(None), None
        before = least
        for ridge in RIDGES:
            correction = self.sums.solve(ridge)
            if correction is not None and (error := self._held_out_error(correction)) < least:
                least, best = error, correction
        left = self.error if best is None else max(0.0, self.error - self.sums.explained(best))
        if best is not None:
            _add(self.layer, best)
        return Fit(
            self.path,
            (self.error / self.squares[False], left / self.squares[False]),
            (before / max(self.squares[True], TINY), least / max(self.squares[True], TINY)),
            best is not None,
        )

    def _held_out_error(self, correction: Correction | None) -> float:
        return sum(
            _squares(residuals if correction is None else residuals - correction.of(inputs), by_row)
            for inputs, residuals, by_row in self.held_out
        )


def _squares(values: Tensor, by_row: Tensor) -> float:
    """Weighted sum of squares. values: (rows, ..., ...), by_row: (rows,)."""
    return float(values.double().square().sum((1, 2)) @ by_row.double())


def _matrix(layer: nn.Module) -> Tensor:
    """A layer's weight as (groups, outputs, inputs)."""
    groups = getattr(layer, "groups", 1)
    weight: Tensor = cast(Any, layer).weight
    return weight.detach().view(groups, weight.shape[0] // groups, -1)


@torch.no_grad()
def _add(layer: Any, correction: Correction) -> None:
    weight: Tensor = layer.weight
    weight += correction.weight.reshape(weight.shape).to(weight)
    bias: Tensor | None = layer.bias
    if bias is not None and correction.bias is not None:
        bias += correction.bias.flatten().to(bias)
