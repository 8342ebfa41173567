"""Fit a pruned model layer after layer, on its own inputs, to the outputs of the original."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
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
from diffprune.pruning.compensation.noised_images import WeightedBatch
from diffprune.pruning.compensation.norm_fit import NORMS, NormFit
from diffprune.pruning.compensation.paused_pass import PausedPass, pausing_at
from diffprune.runs.progress import progress


@dataclass(frozen=True)
class Compensation:
    """The result of a compensation.

    layers: one fit per layer whose output differed from the original's, in the order of the forward pass.
    output_error: mean squared difference to the original's output on held-out images, before and after.
    """

    layers: tuple[Fit, ...]
    output_error: tuple[float, float]

    @property
    def helped(self) -> bool:
        """Whether the output error is lower than before."""
        return self.output_error[1] < self.output_error[0]

    def summary(self) -> dict[str, Any]:
        """Return the numbers for `run.json` and the manifest."""
        unchanged = sum(not fit.changed for fit in self.layers)
        return {
            "helped": self.helped,
            "output_error_before": self.output_error[0],
            "output_error_after": self.output_error[1],
            "layers_fitted": len(self.layers) - unchanged,
            "layers_left": unchanged,
        }


@dataclass(frozen=True)
class _PassPair:
    """The forward passes of one micro-batch through both models."""

    batch: WeightedBatch
    small: PausedPass
    dense: PausedPass


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
    """Fit the layers of `small` in place, each to the output of the same layer of `dense`.

    Each convolution and linear layer whose output differs is solved in closed form:
    W <- W + argmin_D sum of |(W + D) x + b - y|^2 + lam |D|^2. Here x is the layer's input in `small`, whose earlier
    layers are fitted by then, and y its output in `dense`. Norms get a scale and shift per channel. A layer is not
    changed where that does not lower the error on held-out images, nor where a forward pass calls it several times.

    Args:
        dense: the original, in eval mode and on the device of `small`.
        small: the pruned model, in eval mode.
        kept: rows of each layer of `dense` that `small` has.
        paths: path in `small` -> path in `dense`.
        batches: micro-batches; some are held out.
        seed: of the sampled positions.
        cache: solved layers, which are not solved again.

    Raises ModelError where the two models call their layers in different orders.
    Source: reconstruction by least squares after channel pruning (He, Zhang and Sun, ICCV 2017), here layer after
    layer on the inputs from the fitted layers before.
    """
    held_out = [batch for batch in batches if batch.held_out]
    with _counted_calls(small, paths.keys()) as calls, _counted_calls(dense, paths.values()) as dense_calls:
        targets = [_output(dense, batch) for batch in held_out]
        before = _error([_output(small, batch) for batch in held_out], targets)
    once = [p for p in paths if calls[p] == dense_calls[paths[p]] == len(held_out) and _can_be_fitted(small, p)]
    fits: list[Fit] = []
    with ExitStack() as stack:
        stack.enter_context(pausing_at(small, once, "input"))
        stack.enter_context(pausing_at(dense, [paths[p] for p in once], "output"))
        pairs = [
            _PassPair(b, PausedPass(partial(_output, small, b)), PausedPass(partial(_output, dense, b)))
            for b in batches
        ]
        passes = [one for pair in pairs for one in (pair.small, pair.dense)]
        for one in passes:
            stack.callback(one.stop)
        advance_bar = stack.enter_context(progress("compensation", len(once), "layers"))
        for number in range(len(once)):
            generator = torch.Generator().manual_seed(seed * len(once) + number)
            fit = _fit_next(small, kept, paths, pairs, generator, cache)
            fits += [fit] if fit is not None else []
            advance_bar(1, "")
        for one in passes:
            one.advance()
        outputs = [pair.small.output for pair in pairs if pair.batch.held_out]
    return Compensation(tuple(fits), (before, _error(outputs, targets)))


def _fit_next(
    small: nn.Module,
    kept: Mapping[LayerDim, Tensor],
    paths: Mapping[str, str],
    pairs: Sequence[_PassPair],
    generator: torch.Generator,
    cache: SolvedLayers | None,
) -> Fit | None:
    """Advance all passes to the next layer and fit it; None where its output is that of the original."""
    layer_fit: LayerFit | NormFit | None = None
    cached: Fit | None = None
    for pair in pairs:
        in_small, in_dense = pair.small.advance(), pair.dense.advance()
        if in_small is None or in_dense is None or in_dense.path != paths[in_small.path]:
            raise ModelError(
                f"compensation failed: the pruned model calls layer {in_small and in_small.path} where the original "
                f"calls {in_dense and in_dense.path}. Only models whose order of layers does not depend on the data "
                "are supported; prune this one with compensate off"
            )
        layer, batch = small.get_submodule(in_small.path), pair.batch
        if layer_fit is None:
            cached = None if cache is None else cache.load(in_small.path, layer)
            per_image = -(-ROWS // sum(len(pair.batch.weights) for pair in pairs if not pair.batch.held_out))
            layer_fit = (
                NormFit(in_small.path, layer)
                if isinstance(layer, NORMS)
                else LayerFit(in_small.path, layer, generator, per_image)
            )
        if cached is not None:
            continue
        rows, target = kept.get((in_dense.path, "out")), in_dense.tensor
        if rows is not None:
            target = target.index_select(channel_axis(layer, target), rows.to(target.device))
        if _comparable(layer, in_small.tensor, target, batch):
            weights = batch.weights.repeat_interleave(len(target) // len(batch.weights)).to(target.device)
            layer_fit.add(_full_precision(in_small.tensor), _full_precision(target), weights, held_out=batch.held_out)
    assert layer_fit is not None
    if cached is not None:
        return cached
    fit = layer_fit.finish()
    if fit is not None and cache is not None:
        cache.save(fit, layer)
    return fit


def _full_precision(activations: Tensor) -> Tensor:
    """Return 16-bit activations, as under autocast, in float32; others unchanged."""
    return activations.float() if activations.dtype.itemsize < 4 else activations


def _can_be_fitted(model: nn.Module, path: str) -> bool:
    layer = model.get_submodule(path)
    return is_supported(layer) or (isinstance(layer, NORMS) and isinstance(layer.weight, nn.Parameter))


def _comparable(layer: nn.Module, x: Tensor, target: Tensor, batch: WeightedBatch) -> bool:
    """Whether equal rows of x and target belong to the same image; not so where heads are folded into rows."""
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
def _counted_calls(model: nn.Module, paths: Iterable[str]) -> Iterator[Counter[str]]:
    """Count the calls of each layer inside the block."""
    calls: Counter[str] = Counter()

    def count(path: str) -> Any:
        return lambda layer, args, output: calls.update([path])

    handles = [model.get_submodule(path).register_forward_hook(count(path)) for path in paths]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
