"""The score pass: gradients of the training loss at one timestep after the other."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from diffprune.criteria.scores import is_weighted
from diffprune.data.calibration import Calibration
from diffprune.errors import ModelError
from diffprune.models.families import predict
from diffprune.options import PlanOptions
from diffprune.progress import progress

Weights = Mapping[str, nn.Parameter]
"""Path of a layer -> its weight."""


@dataclass(frozen=True)
class Losses:
    """The mean loss at each timestep of a score pass, in the order of the pass.

    stopped_at: the timestep at which the threshold ended the pass, None where it ran to its end.
    """

    by_timestep: dict[int, float]
    stopped_at: list[int]

    def details(self) -> dict[str, Any]:
        """What plans tell about the pass."""
        return {
            "timesteps_used": len(self.by_timestep),
            "stopped_at": self.stopped_at[0] if self.stopped_at else None,
            "losses": [round(loss, 6) for loss in self.by_timestep.values()],
        }


@dataclass(frozen=True)
class GradientSums:
    """Weights and their gradients summed over timesteps, by path; details as in `Losses.details`."""

    weights: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]
    details: Mapping[str, Any]


def weights_of(denoiser: nn.Module) -> Weights:
    """The weights that enter scores: of convolutions and linears."""
    return {p: m.weight for p, m in denoiser.named_modules() if is_weighted(m) and isinstance(m.weight, nn.Parameter)}


def norm_weights_of(denoiser: nn.Module) -> Weights:
    """The weights of group norms."""
    return {p: m.weight for p, m in denoiser.named_modules() if isinstance(m, nn.GroupNorm)}


def scored_timesteps(num_timesteps: int, options: PlanOptions) -> range:
    """The timesteps of a score pass: every n-th from the first to the last one asked for.

    num_timesteps: T of the model's schedule. Raises ModelError when it has none of them.
    """
    end = num_timesteps if options.last_timestep is None else options.last_timestep + 1
    found = range(options.first_timestep, min(end, num_timesteps), options.timestep_stride)
    if not found:
        raise ModelError(
            f"no timesteps to score from {options.first_timestep} to {end - 1}: the model has 0 to {num_timesteps - 1}"
        )
    return found


def timestep_gradients(
    denoiser: nn.Module, calibration: Calibration, options: PlanOptions, weights: Weights, losses: Losses
) -> Iterator[list[Tensor]]:
    """Yield, timestep by timestep, the fp32 gradients dL_t/dw of `weights`; fills `losses` on the way.

    L_t is the mean squared error of the prediction over the calibration batch. The denoiser must take gradients.
    Raises ModelError when the loss is not finite.
    """
    timesteps = scored_timesteps(calibration.num_timesteps, options)
    with progress("scores", len(timesteps), "timesteps") as advance:
        for t in timesteps:
            loss, gradients = _at(denoiser, calibration, t, list(weights.values()), options.batch_size)
            check_loss(loss, t)
            losses.by_timestep[t] = loss
            yield gradients
            advance(1, f"loss {loss:.4f}")


def summed_gradients(
    denoiser: nn.Module, calibration: Calibration | None, options: PlanOptions, *, threshold: float, norms: bool
) -> GradientSums:
    """G = sum over t of dL_t/dw with its sign, before the first t with L_t < threshold * (largest loss so far).

    Source: Fang, Ma and Wang, NeurIPS 2023, section 3.
    """
    weights = {**weights_of(denoiser), **(norm_weights_of(denoiser) if norms else {})}
    losses = Losses({}, [])
    total = [torch.zeros_like(w, dtype=torch.float32) for w in weights.values()]
    for gradients in timestep_gradients(denoiser, needed(calibration), options, weights, losses):
        t, loss = next(reversed(losses.by_timestep.items()))
        if loss < threshold * max(losses.by_timestep.values()):
            del losses.by_timestep[t]
            losses.stopped_at.append(t)
            break
        torch._foreach_add_(total, gradients)
    values = {path: weight.detach().float() for path, weight in weights.items()}
    return GradientSums(values, dict(zip(weights, total, strict=True)), losses.details())


def needed(calibration: Calibration | None) -> Calibration:
    """The calibration batch; raises ModelError where there is none."""
    if calibration is None:
        raise ModelError("this criterion needs calibration images")
    return calibration


def check_loss(loss: float, timestep: int) -> None:
    """Raise ModelError for a loss that is not finite."""
    if not math.isfinite(loss):
        raise ModelError(f"the loss at timestep {timestep} is {loss}; the model or its images hold broken values")


def _at(
    denoiser: nn.Module, calibration: Calibration, timestep: int, weights: list[nn.Parameter], batch_size: int
) -> tuple[float, list[Tensor]]:
    total_loss = 0.0
    sums: list[Tensor] | None = None
    for batch in calibration.batches(timestep, batch_size):
        share = len(batch.noisy) / len(calibration.clean)
        output = predict(denoiser, batch.noisy, batch.timesteps, batch.condition)
        loss = functional.mse_loss(output.float(), batch.target.float()) * share
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        found = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, gradients, strict=True)]
        sums = found if sums is None else [a + b for a, b in zip(sums, found, strict=True)]
        total_loss += float(loss.detach())
    assert sums is not None
    return total_loss, [g.float() for g in sums]
