"""The score pass: gradients of the training loss, timestep by timestep, each folded away as soon as it is there."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from diffprune.calibration.calibration_set import Calibration, NoisyBatch
from diffprune.criteria.scores import is_weighted
from diffprune.errors import ModelError
from diffprune.groups import Group
from diffprune.options import ScoringOptions
from diffprune.pipelines.predict import predict
from diffprune.runs.accumulator import Accumulator, check_loss
from diffprune.runs.distributed import process_state

Weights = Mapping[str, nn.Parameter]
"""Path of a layer -> its weight."""

Fold = Callable[[str, Tensor], None]
"""Takes the path of a layer and an fp32 gradient of its weight, of which nothing else is kept."""


NUM_SCORED = 100
"""Timesteps that are scored unless told otherwise: leaving out the others changes scores less than other images do."""


@dataclass(frozen=True)
class GradientSums:
    """Weights, in their own dtype, and their gradients summed over timesteps, fp32; details as in `loss_details`."""

    weights: Weights
    gradients: Mapping[str, Tensor]
    details: Mapping[str, Any]

    def term(self, path: str) -> Tensor:
        """The product w * G of one layer, fp32."""
        return self.weights[path].detach().float() * self.gradients[path]


def weights_of(denoiser: nn.Module, groups: Sequence[Group]) -> Weights:
    """The weights that enter the scores of these groups: of convolutions and linears."""
    return {p: m.weight for p, m in _layers(denoiser, groups) if is_weighted(m) and isinstance(m.weight, nn.Parameter)}


def norm_weights_of(denoiser: nn.Module, groups: Sequence[Group]) -> Weights:
    """The weights of the group norms over units of these groups."""
    return {p: m.weight for p, m in _layers(denoiser, groups) if isinstance(m, nn.GroupNorm)}


def _layers(denoiser: nn.Module, groups: Sequence[Group]) -> list[tuple[str, Any]]:
    places = {part.module for group in groups for part in group.slices}
    return [(path, module) for path, module in denoiser.named_modules() if path in places]


def scored_timesteps(num_timesteps: int, options: ScoringOptions) -> range:
    """The timesteps of a score pass: every n-th from the first to the last one asked for; `auto` makes it a hundred.

    num_timesteps: T of the model's schedule. Raises ModelError when it has none of them.
    """
    end = num_timesteps if options.last_timestep is None else options.last_timestep + 1
    found = range(options.first_timestep, min(end, num_timesteps))
    if not found:
        raise ModelError(
            f"no timesteps to score from {options.first_timestep} to {end - 1}: the model has 0 to {num_timesteps - 1}"
        )
    stride = options.timestep_stride
    return found[:: max(1, len(found) // NUM_SCORED) if stride == "auto" else stride]


def spaced_timesteps(calibration: Calibration, options: ScoringOptions, num: int) -> list[int]:
    """At most `num` timesteps, evenly spaced among those to be scored."""
    known = scored_timesteps(calibration.num_timesteps, options)
    num = min(num, len(known))
    return [known[int((i + 0.5) * len(known) / num)] for i in range(num)]


def fold_gradients(
    denoiser: nn.Module, calibration: Calibration, options: ScoringOptions, weights: Weights, fold: Fold,
    sums: Accumulator, *, threshold: float = 0.0, whole_timesteps: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Give `fold` the gradients dL_t/dw of `weights`, each in the middle of the backward pass, and drop it there.

    L_t is the mean squared error of the prediction over the calibration batch. So the gradients of all weights are
    never there together, and no other parameter gets one. With several micro-batches `fold` is given the parts of a
    gradient; with `whole_timesteps` their sum, for which they are held meanwhile.
    sums: what `fold` adds to; it notes how far the pass has come. Several processes share the timesteps, or with a
    threshold, which needs them in their order, the images.
    threshold: the pass ends before the first t with L_t < threshold * (largest loss so far).
    Returns what plans tell of the pass. Raises ModelError when the loss is not finite.
    """
    assert not (threshold and whole_timesteps), "images are shared by processes where there is a threshold"
    images = _my_images(calibration, options) if threshold else calibration
    held: dict[str, Tensor] = {}
    holds = whole_timesteps and len(calibration) > options.batch_size

    def take(path: str, gradient: Tensor) -> None:
        if not holds:
            fold(path, gradient)
        elif path in held:
            held[path] += gradient
        else:
            held[path] = gradient

    timesteps = scored_timesteps(calibration.num_timesteps, options)
    with _differentiated(denoiser, weights, take):
        for t in sums.iterate(timesteps, "scores", "timesteps", sharded=not threshold):
            limit = threshold * max(sums.losses.values(), default=0.0)
            total = 0.0
            for number, batch in enumerate(images.batches(t, options.batch_size)):
                loss = _loss(denoiser, batch, calibration)
                total += float(loss.detach())
                first = number == 0 and limit > 0
                if first and not _reaches(limit, total, denoiser, images, calibration, t, options, sums):
                    return loss_details(sums, stopped_at=t)
                loss.backward()
            sums.losses[t] = total
            for path in list(held):
                fold(path, held.pop(path))
    return loss_details(sums)


def loss_details(sums: Accumulator, *, stopped_at: int | None = None) -> dict[str, Any]:
    """What plans tell of a pass: the mean loss at each timestep, and the one at which a threshold ended it."""
    return {
        "timesteps_used": len(sums.losses),
        "stopped_at": stopped_at,
        "losses": [round(loss, 6) for loss in sums.losses.values()],
    }


def zeros_of(weights: Weights, sums: Accumulator) -> dict[str, Tensor]:
    """A running sum for each weight, fp32, where the weight is."""
    return {
        path: sums.zeros(path, *weight.shape, dtype=torch.float32, device=weight.device)
        for path, weight in weights.items()
    }


def summed_gradients(
    denoiser: nn.Module, groups: Sequence[Group], calibration: Calibration | None, options: ScoringOptions,
    sums: Accumulator, *, threshold: float, norms: bool,
) -> GradientSums:  # fmt: skip
    """G = sum over t of dL_t/dw with its sign, before the first t with L_t < threshold * (largest loss so far).

    Source: Fang, Ma and Wang, NeurIPS 2023, section 3.
    """
    weights = {**weights_of(denoiser, groups), **(norm_weights_of(denoiser, groups) if norms else {})}
    part = zeros_of(weights, sums)

    def add(path: str, gradient: Tensor) -> None:
        part[path] += gradient

    details = fold_gradients(denoiser, needed(calibration), options, weights, add, sums, threshold=threshold)
    return GradientSums(weights, {path: sums.total(path) for path in weights}, details)


def needed(calibration: Calibration | None) -> Calibration:
    """The calibration batch; raises ModelError where there is none."""
    if calibration is None:
        raise ModelError("this criterion needs calibration images")
    return calibration


def _my_images(calibration: Calibration, options: ScoringOptions) -> Calibration:
    """This process's share of the images; raises ModelError where there is none for some process."""
    state = process_state(options.device)
    if len(calibration) < state.num_processes:
        raise ModelError(
            f"{len(calibration)} calibration images for {state.num_processes} processes; with a threshold each needs "
            "one: give more images or start fewer processes"
        )
    return calibration.every(state.num_processes, state.process_index)


def _loss(denoiser: nn.Module, batch: NoisyBatch, calibration: Calibration) -> Tensor:
    """The part of L_t that a micro-batch contributes."""
    output = predict(denoiser, batch.noisy, batch.timesteps, batch.condition)
    return functional.mse_loss(output.float(), batch.target.float()) * (len(batch.noisy) / len(calibration))


@torch.no_grad()
def _reaches(
    limit: float, first: float, denoiser: nn.Module, images: Calibration, calibration: Calibration, timestep: int,
    options: ScoringOptions, sums: Accumulator,
) -> bool:  # fmt: skip
    """Whether L_t reaches a limit, of which `first` is the part of the first micro-batch of this process's images.

    Looks at no more than it must; all processes look at equally many micro-batches.
    """
    rest = islice(images.batches(timestep, options.batch_size), 1, None)
    largest_share = math.ceil(len(calibration) / process_state(options.device).num_processes)
    total = sums.all_reduce(first)
    for _ in range(1, math.ceil(largest_share / options.batch_size)):
        if total >= limit:
            break
        batch = next(rest, None)
        total += sums.all_reduce(0.0 if batch is None else float(_loss(denoiser, batch, calibration)))
    check_loss(total, timestep)
    return total >= limit


@contextmanager
def _differentiated(denoiser: nn.Module, weights: Weights, take: Fold) -> Iterator[None]:
    """While it lasts, backward passes hand the gradients of `weights` to `take`; no other parameter gets any."""
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in denoiser.parameters()]

    def hand_over(path: str) -> Callable[[Tensor], None]:
        def hook(weight: Tensor) -> None:
            assert weight.grad is not None
            gradient, weight.grad = weight.grad.float(), None
            take(path, gradient)

        return hook

    denoiser.requires_grad_(False)
    handles = []
    try:
        for path, weight in weights.items():
            weight.grad = None
            weight.requires_grad_(True)
            handles.append(weight.register_post_accumulate_grad_hook(hand_over(path)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, wanted, gradient in before:
            parameter.requires_grad_(wanted)
            parameter.grad = gradient
