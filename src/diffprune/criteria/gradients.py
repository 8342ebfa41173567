"""The score pass: gradients of the training loss, summed over timesteps with their sign."""

from collections.abc import Mapping
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

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class GradientSums:
    """Weights and their summed gradients.

    layers: conv or linear path -> (w, G); norms: norm path -> (w, G).
    details: timesteps used, and the loss of each.
    """

    layers: Mapping[str, Pair]
    norms: Mapping[str, Pair]
    details: Mapping[str, Any]


def summed_gradients(
    denoiser: nn.Module, calibration: Calibration | None, options: PlanOptions, *, threshold: float, norms: bool
) -> GradientSums:
    """G = sum over t of dL_t/dw on the calibration batch, L_t the mean squared error of the prediction.

    Timesteps run 0, s, 2s, ... with s = options.timestep_stride; the pass stops before the first one whose
    loss falls below `threshold` times the largest loss so far (Fang et al. 2023, section 3). The denoiser must
    take gradients. Raises ModelError when the loss is not finite.
    """
    if calibration is None:
        raise ModelError("this criterion needs calibration images")
    layers = {p: m.weight for p, m in denoiser.named_modules() if is_weighted(m) and isinstance(m.weight, nn.Parameter)}
    norm_layers = {p: m.weight for p, m in denoiser.named_modules() if norms and isinstance(m, nn.GroupNorm)}
    weights = [*layers.values(), *norm_layers.values()]
    total = [torch.zeros_like(w, dtype=torch.float32) for w in weights]
    timesteps = range(0, calibration.num_timesteps, options.timestep_stride)
    losses: list[float] = []
    stopped_at = None
    with progress("scores", len(timesteps), "timesteps") as advance:
        for t in timesteps:
            loss, gradients = _at(denoiser, calibration, t, weights, options.batch_size)
            if not loss == loss or loss == float("inf"):
                raise ModelError(f"the loss at timestep {t} is {loss}; the model or its images hold broken values")
            if losses and loss < threshold * max(losses):
                stopped_at = t
                break
            losses.append(loss)
            torch._foreach_add_(total, gradients)
            advance(1, f"loss {loss:.4f}")
    pairs = [(w.detach().float(), g) for w, g in zip(weights, total, strict=True)]
    by_path = dict(zip([*layers, *norm_layers], pairs, strict=True))
    details = {"timesteps_used": len(losses), "stopped_at": stopped_at, "losses": [round(v, 6) for v in losses]}
    return GradientSums({p: by_path[p] for p in layers}, {p: by_path[p] for p in norm_layers}, details)


def _at(
    denoiser: nn.Module, calibration: Calibration, timestep: int, weights: list[nn.Parameter], batch_size: int
) -> tuple[float, list[Tensor]]:
    total_loss = 0.0
    sums: list[Tensor] | None = None
    for noisy, timesteps, target in calibration.batches(timestep, batch_size):
        share = len(noisy) / len(calibration.images)
        loss = functional.mse_loss(predict(denoiser, noisy, timesteps).float(), target.float()) * share
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        found = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, gradients, strict=True)]
        sums = found if sums is None else [a + b for a, b in zip(sums, found, strict=True)]
        total_loss += float(loss.detach())
    assert sums is not None
    return total_loss, [g.float() for g in sums]
