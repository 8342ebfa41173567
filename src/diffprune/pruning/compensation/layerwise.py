"""Original and pruned model walk side by side; each layer of the pruned one is fitted before it is passed."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diffprune.artifact.slicing import CHANNELS_FIRST, LayerDim, channel_axis
from diffprune.compute.unfold import is_supported
from diffprune.errors import ModelError
from diffprune.pipelines.predict import predict
from diffprune.pruning.compensation.layer_cache import SolvedLayers
from diffprune.pruning.compensation.layer_fit import ROWS, Fit, LayerFit
from diffprune.pruning.compensation.lockstep import Walk, pausing
from diffprune.pruning.compensation.noised_images import WeightedBatch
from diffprune.pruning.compensation.norm_fit import NORMS, NormFit
from diffprune.runs.progress import progress


@dataclass(frozen=True)
class Compensation:
    """What compensation did.

    layers: one entry per layer that no longer gave what the original gave, in the order of the forward pass.
    output_error: mean squared difference to the original's output on held-out images, before and after.
    """

    layers: tuple[Fit, ...]
    output_error: tuple[float, float]

    @property
    def helped(self) -> bool:
        """Whether the pruned model is nearer to the original than it was."""
        return self.output_error[1] < self.output_error[0]

    def summary(self) -> dict[str, Any]:
        """The figures, for `run.json` and the manifest."""
        left = sum(not fit.changed for fit in self.layers)
        return {
            "helped": self.helped,
            "output_error_before": self.output_error[0],
            "output_error_after": self.output_error[1],
            "layers_fitted": len(self.layers) - left,
            "layers_left": left,
        }


@torch.no_grad()
def fit_layers(
    dense: nn.Module,
    small: nn.Module,
    kept: Mapping[LayerDim, Tensor],
    paths: Mapping[str, str],
    batches: Sequence[WeightedBatch],
    *,
    seed: int,
    cache: SolvedLayers | None = None,
) -> Compensation:
    """Fit the layers of `small`, in place, so that each gives on its own inputs what it gave in `dense`.

    Each convolution and linear layer whose output has changed is solved in closed form, W <- W + argmin_D sum of
    |(W + D) x + b - y|^2 + lam |D|^2 with x its input in the pruned model as it is by then, and y its output in the
    original; norms get a scale and shift per channel. Layers stay as they are where that does not lower the error on
    held-out images, and where they are called several times in a pass.

    dense, small: on one device, in eval mode. kept: rows of dense's layers that small has. paths: path in small -> path
    in dense. cache: what has been solved is kept there, and is not solved again.
    Raises ModelError where the two models do not run through the same layers.
    Source: reconstruction by least squares after channel pruning (He, Zhang and Sun, ICCV 2017), here layer after
    layer on the inputs that the layers before have left.
    """
    held_out = [batch for batch in batches if batch.held_out]
    with _counting(small, paths.keys()) as calls, _counting(dense, paths.values()) as dense_calls:
        targets = [_output(dense, batch) for batch in held_out]
        before = _error([_output(small, batch) for batch in held_out], targets)
    once = [p for p in paths if calls[p] == dense_calls[paths[p]] == len(held_out) and _can_be_fitted(small, p)]
    fits: list[Fit] = []
    with pausing(small, once, "input"), pausing(dense, [paths[p] for p in once], "output"):
        walks = [(Walk(partial(_output, small, batch)), Walk(partial(_output, dense, batch))) for batch in batches]
        try:
            with progress("compensation", len(once), "layers") as advance:
                for number in range(len(once)):
                    generator = torch.Generator().manual_seed(seed * len(once) + number)
                    fit = _fit_next(small, kept, paths, batches, walks, generator, cache)
                    fits += [fit] if fit is not None else []
                    advance(1, "")
            for walk in (walk for pair in walks for walk in pair):
                walk.advance()
            outputs = [walk.output for batch, (walk, _) in zip(batches, walks, strict=True) if batch.held_out]
        finally:
            for walk in (walk for pair in walks for walk in pair):
                walk.stop()
    return Compensation(tuple(fits), (before, _error(outputs, targets)))


def _fit_next(
    small: nn.Module,
    kept: Mapping[LayerDim, Tensor],
    paths: Mapping[str, str],
    batches: Sequence[WeightedBatch],
    walks: Sequence[tuple[Walk, Walk]],
    generator: torch.Generator,
    cache: SolvedLayers | None,
) -> Fit | None:
    """Lead all passes to the next layer and fit it; None where it gives what the original gave."""
    layer_fit: LayerFit | NormFit | None = None
    for batch, (in_small, in_dense) in zip(batches, walks, strict=True):
        here, there = in_small.advance(), in_dense.advance()
        if here is None or there is None or there.path != paths[here.path]:
            raise ModelError(
                f"compensation: the pruned model is at {here and here.path} where the original is at "
                f"{there and there.path}; its layers depend on the data. Prune it with compensate off"
            )
        layer = small.get_submodule(here.path)
        if layer_fit is None:
            known = None if cache is None else cache.load(here.path, layer)
            per_image = -(-ROWS // sum(len(b.weights) for b in batches if not b.held_out))
            layer_fit = (
                NormFit(here.path, layer)
                if isinstance(layer, NORMS)
                else LayerFit(here.path, layer, generator, per_image)
            )
        if known is not None:
            continue
        rows, target = kept.get((there.path, "out")), there.tensor
        if rows is not None:
            target = target.index_select(channel_axis(layer, target), rows.to(target.device))
        if _comparable(layer, here.tensor, target, batch):
            weights = batch.weights.repeat_interleave(len(target) // len(batch.weights)).to(target.device)
            layer_fit.add(here.tensor, target, weights, held_out=batch.held_out)
    assert layer_fit is not None
    if known is not None:
        return known
    fit = layer_fit.finish()
    if fit is not None and cache is not None:
        cache.save(fit, layer)
    return fit


def _can_be_fitted(model: nn.Module, path: str) -> bool:
    layer = model.get_submodule(path)
    return is_supported(layer) or (isinstance(layer, NORMS) and isinstance(layer.weight, nn.Parameter))


def _comparable(layer: nn.Module, x: Tensor, target: Tensor, batch: WeightedBatch) -> bool:
    """Whether a layer sees the rows in both models that belong to the same images: heads, say, may be fewer."""
    if len(x) != len(target) or len(x) % len(batch.weights):
        return False
    return isinstance(layer, CHANNELS_FIRST) or x.shape[:-1] == target.shape[:-1]


def _output(model: nn.Module, batch: WeightedBatch) -> Tensor:
    return predict(model, batch.noisy.noisy, batch.noisy.timesteps, batch.noisy.condition)


def _error(outputs: Sequence[Tensor | None], targets: Sequence[Tensor]) -> float:
    pairs = [(output, target) for output, target in zip(outputs, targets, strict=True) if output is not None]
    squares = sum(float((output.double() - target.double()).square().sum()) for output, target in pairs)
    return squares / sum(target.numel() for _, target in pairs)


@contextmanager
def _counting(model: nn.Module, paths: Iterable[str]) -> Iterator[Counter[str]]:
    """Count the calls of layers while it lasts."""
    calls: Counter[str] = Counter()

    def count(path: str) -> Any:
        return lambda layer, args, output: calls.update([path])

    handles = [model.get_submodule(path).register_forward_hook(count(path)) for path in paths]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
