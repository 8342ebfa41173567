"""The score pass: gradients of the training loss by timestep, each reduced into a sum as soon as it is computed."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from diffprune.artifact.slicing import is_weighted
from diffprune.calibration.calibration_set import Calibration, NoisyBatch
from diffprune.errors import ModelError
from diffprune.groups import Group
from diffprune.options import ScoringOptions
from diffprune.pipelines.predict import predict
from diffprune.runs.accumulator import Accumulator, check_loss
from diffprune.runs.distributed import process_state
from diffprune.runs.progress import notify

Weights = Mapping[str, nn.Parameter]
"""Path of a layer -> its weight."""

Fold = Callable[[str, Tensor], None]
"""Reduces the fp32 gradient of a layer's weight, given by path, into running sums."""


NUM_SCORED = 100
"""Timesteps scored by default: skipping the others changes scores less than another draw of images does."""


@dataclass(frozen=True)
class GradientSums:
    """Weights in their own dtype, and their gradients summed over timesteps in fp32; details as in `loss_details`."""

    weights: Weights
    gradients: Mapping[str, Tensor]
    details: Mapping[str, Any]

    def term(self, path: str) -> Tensor:
        """Return w * G of one layer, fp32."""
        return self.weights[path].detach().float() * self.gradients[path]


def weights_of(denoiser: nn.Module, groups: Sequence[Group]) -> Weights:
    """Return the weights that enter the scores of groups: those of convolutions and linear layers."""
    return {p: m.weight for p, m in _layers(denoiser, groups) if is_weighted(m) and isinstance(m.weight, nn.Parameter)}


def norm_weights_of(denoiser: nn.Module, groups: Sequence[Group]) -> Weights:
    """Return the GroupNorm weights over the units of groups."""
    return {p: m.weight for p, m in _layers(denoiser, groups) if isinstance(m, nn.GroupNorm)}


def _layers(denoiser: nn.Module, groups: Sequence[Group]) -> list[tuple[str, Any]]:
    places = {part.module for group in groups for part in group.slices}
    return [(path, module) for path, module in denoiser.named_modules() if path in places]


def scored_timesteps(num_timesteps: int, options: ScoringOptions) -> range:
    """Return the timesteps of a score pass: every n-th from first to last; stride `auto` gives about a hundred.

    num_timesteps: T of the model's schedule. Raises ModelError when the schedule has none of these timesteps.
    """
    end = num_timesteps if options.last_timestep is None else options.last_timestep + 1
    selected = range(options.first_timestep, min(end, num_timesteps))
    if not selected:
        raise ModelError(
            f"no timesteps to score from {options.first_timestep} to {end - 1}: the model has 0 to {num_timesteps - 1}"
        )
    stride = options.timestep_stride
    return selected[:: max(1, len(selected) // NUM_SCORED) if stride == "auto" else stride]


def spaced_timesteps(calibration: Calibration, options: ScoringOptions, num: int) -> list[int]:
    """Return at most `num` evenly spaced timesteps of a score pass."""
    scored = scored_timesteps(calibration.num_timesteps, options)
    num = min(num, len(scored))
    return [scored[int((i + 0.5) * len(scored) / num)] for i in range(num)]


def fold_gradients(
    denoiser: nn.Module, calibration: Calibration, options: ScoringOptions, weights: Weights, fold: Fold,
    sums: Accumulator, *, threshold: float = 0.0, whole_timesteps: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Call `fold` with the gradients dL_t/dw of `weights` during the backward pass, and free each right after.

    L_t is the mean squared error of the prediction over the calibration batch. The gradients of all weights are never
    in memory together, and other parameters get none. `fold` receives the gradient of each micro-batch; with
    `whole_timesteps` their sum over the micro-batches of a timestep.
    sums: the running sums of `fold`; it records the progress of the pass. Ranks share the timesteps, or the images
    where a threshold needs the timesteps in order.
    threshold: the pass ends before the first t with L_t < threshold * (largest loss so far).
    Returns `loss_details`. Raises ModelError when the loss is not finite.
    """
    assert not (threshold and whole_timesteps), "with a threshold, images are sharded over ranks"
    images = _rank_images(calibration, options) if threshold else calibration
    held: dict[str, Tensor] = {}
    holds = whole_timesteps and len(calibration) > options.batch_size

    def receive(path: str, gradient: Tensor) -> None:
        if not holds:
            fold(path, gradient)
        elif path in held:
            held[path] += gradient
        else:
            held[path] = gradient

    timesteps = scored_timesteps(calibration.num_timesteps, options)
    with _gradients_to(denoiser, weights, receive):
        for t in sums.iterate(timesteps, "scores", "timesteps", sharded=not threshold):
            limit = threshold * max(sums.losses.values(), default=0.0)
            total = 0.0
            for number, batch in enumerate(images.batches(t, options.batch_size)):
                loss = _loss(denoiser, batch, calibration)
                total += float(loss.detach())
                first = number == 0 and limit > 0
                if first and not _reaches(limit, total, denoiser, images, calibration, t, options, sums):
                    notify(
                        f"scores: stopped after {len(sums.losses)} of {len(timesteps)} timesteps: "
                        f"loss below {100 * threshold:g} % of the largest"
                    )
                    return loss_details(sums, stopped_at=t)
                loss.backward()
            sums.losses[t] = total
            for path in list(held):
                fold(path, held.pop(path))
    return loss_details(sums)


def loss_details(sums: Accumulator, *, stopped_at: int | None = None) -> dict[str, Any]:
    """Return the mean loss of each timestep, and the timestep at which a threshold ended the pass."""
    return {
        "timesteps_used": len(sums.losses),
        "stopped_at": stopped_at,
        "losses": [round(loss, 6) for loss in sums.losses.values()],
    }


def zeros_of(weights: Weights, sums: Accumulator) -> dict[str, Tensor]:
    """Return a running sum for each weight: fp32, on the weight's device."""
    return {
        path: sums.zeros(path, *weight.shape, dtype=torch.float32, device=weight.device)
        for path, weight in weights.items()
    }


def summed_gradients(
    denoiser: nn.Module, groups: Sequence[Group], calibration: Calibration | None, options: ScoringOptions,
    sums: Accumulator, *, threshold: float, norms: bool,
) -> GradientSums:  # fmt: skip
    """Return G = sum of the signed dL_t/dw over t, up to the first t with L_t < threshold * (largest loss so far).

    Source: Fang, Ma and Wang, NeurIPS 2023, section 3.
    """
    weights = {**weights_of(denoiser, groups), **(norm_weights_of(denoiser, groups) if norms else {})}
    part = zeros_of(weights, sums)

    def add(path: str, gradient: Tensor) -> None:
        part[path] += gradient

    details = fold_gradients(denoiser, needed(calibration), options, weights, add, sums, threshold=threshold)
    return GradientSums(weights, {path: sums.total(path) for path in weights}, details)


def needed(calibration: Calibration | None) -> Calibration:
    """Return the calibration batch; raises ModelError where there is none."""
    if calibration is None:
        raise ModelError("this criterion needs calibration images; give data")
    return calibration


def _rank_images(calibration: Calibration, options: ScoringOptions) -> Calibration:
    """Return this rank's shard of the images; raises ModelError where a rank would have none."""
    state = process_state(options.device)
    if len(calibration) < state.num_processes:
        raise ModelError(
            f"{len(calibration)} calibration images for {state.num_processes} ranks; with a threshold each rank needs "
            "an image: give more images or start fewer processes"
        )
    return calibration.every(state.num_processes, state.process_index)


def _loss(denoiser: nn.Module, batch: NoisyBatch, calibration: Calibration) -> Tensor:
    """Return the contribution of a micro-batch to L_t."""
    output = predict(denoiser, batch.noisy, batch.timesteps, batch.condition)
    return functional.mse_loss(output.float(), batch.target.float()) * (len(batch.noisy) / len(calibration))


@torch.no_grad()
def _reaches(
    limit: float, first: float, denoiser: nn.Module, images: Calibration, calibration: Calibration, timestep: int,
    options: ScoringOptions, sums: Accumulator,
) -> bool:  # fmt: skip
    """Return whether L_t reaches a limit; `first` is the contribution of this rank's first micro-batch.

    Stops at the first micro-batch that decides it; all ranks run equally many micro-batches.
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
def _gradients_to(denoiser: nn.Module, weights: Weights, receive: Fold) -> Iterator[None]:
    """Pass the gradients of `weights` to `receive` in backward passes; no other parameter gets a gradient."""
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in denoiser.parameters()]

    def receiver(path: str) -> Callable[[Tensor], None]:
        def hook(weight: Tensor) -> None:
            assert weight.grad is not None
            gradient, weight.grad = weight.grad.float(), None
            receive(path, gradient)

        return hook

    denoiser.requires_grad_(False)
    handles = []
    try:
        for path, weight in weights.items():
            weight.grad = None
            weight.requires_grad_(True)
            handles.append(weight.register_post_accumulate_grad_hook(receiver(path)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, requires_grad, gradient in before:
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient
