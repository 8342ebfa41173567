"""Fit one convolution or linear layer to the output of the original layer."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from diffprune.compute.unfold import inputs_at, outputs_at, sample_positions
from diffprune.pruning.compensation.ridge import Correction, ResidualSums

RIDGES = (1e-8, 1e-6, 1e-4, 1e-2)
"""Ridge penalties to try, as shares of the mean diagonal; the least error on held-out images selects one."""

SAME = 1e-10
"""Relative squared error up to which a layer counts as equal to the original."""

ROWS = 12288
"""Sampled positions of a layer's output, in all images of the fit together."""

TINY = 1e-30
"""Lower bound of divisors."""


@dataclass(frozen=True)
class Fit:
    """The relative squared error of one layer, before and after its fit.

    fitted, held_out: (before, after) on the images of the fit and on held-out images. changed: False where the layer
    was not corrected: its sums were ill-conditioned, or no correction lowered the error on held-out images.
    """

    path: str
    fitted: tuple[float, float]
    held_out: tuple[float, float]
    changed: bool


class LayerFit:
    """Accumulates the rows of a layer, batch by batch, then corrects its weight and bias in place."""

    def __init__(self, path: str, layer: nn.Module, generator: torch.Generator, per_image: int) -> None:
        self.path, self.layer = path, cast(Any, layer)
        self.generator, self.per_image = generator, per_image
        self.sums = ResidualSums(has_bias=layer.bias is not None)
        self.held_out: list[tuple[Tensor, Tensor, Tensor]] = []
        self.squares = {False: 0.0, True: 0.0}  # of targets, by whether they are held out
        self.error = 0.0

    def add(self, x: Tensor, target: Tensor, weights: Tensor, *, held_out: bool) -> None:
        """Add one batch, at most `per_image` positions of each image.

        x: the layer's input in the pruned model. target: the original layer's output, kept rows only. weights:
        (entries,), one per entry of the first dimension of both.
        """
        sampled = sample_positions(self.layer, x, self.per_image, self.generator)
        inputs, targets = inputs_at(self.layer, x, sampled), outputs_at(self.layer, target, sampled)
        weight = _matrix(self.layer).to(x.device)
        output = torch.einsum("rgi,goi->rgo", inputs, weight)
        if self.layer.bias is not None:
            output = output + self.layer.bias.view(weight.shape[:2]).to(x.device)
        residuals = targets.to(output.dtype).reshape(output.shape) - output
        by_row = weights[sampled.entries]
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
        """Correct the layer and return its fit; None if its output is that of the original, or not comparable."""
        if self.error <= SAME * self.squares[False]:
            return None
        least, best = self._held_out_error(None), None
        before = least
        for ridge in RIDGES:
            correction = self.sums.solve(ridge)
            if correction is not None and (error := self._held_out_error(correction)) < least:
                least, best = error, correction
        remaining = self.error if best is None else max(0.0, self.error - self.sums.explained(best))
        if best is not None:
            _add(self.layer, best)
        return Fit(
            self.path,
            (self.error / self.squares[False], remaining / self.squares[False]),
            (before / max(self.squares[True], TINY), least / max(self.squares[True], TINY)),
            best is not None,
        )

    def _held_out_error(self, correction: Correction | None) -> float:
        return sum(
            _squares(residuals if correction is None else residuals - correction.of(inputs), by_row)
            for inputs, residuals, by_row in self.held_out
        )


def _squares(values: Tensor, by_row: Tensor) -> float:
    """Return the weighted sum of squares of (rows, groups, outputs) values, by (rows,) weights."""
    return float(values.double().square().sum((1, 2)) @ by_row.double())


def _matrix(layer: nn.Module) -> Tensor:
    """Return a layer's weight as (groups, outputs, inputs)."""
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
