"""What a student is trained for: the noise, its teacher's output, its teacher's features."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from diffprune.calibration.calibration_set import NoisyBatch
from diffprune.options import FinetuneOptions, TrainingOptions
from diffprune.pipelines.diffusion import min_snr_weights
from diffprune.pipelines.predict import predict
from diffprune.training.feature_distillation import Matched, matched_blocks
from diffprune.training.losses import denoising_loss, distillation_loss, feature_loss


class Objective:
    """The loss of a forward pass. The teacher, if any, is copied; it only answers, in the dtype asked for.

    denoiser: the student before it was made ready. student: as it trains, perhaps with adapters. place: brings the
    copy to where the student computes, on a device of this type.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        student: nn.Module,
        teacher: nn.Module | None,
        options: TrainingOptions,
        scheduler: Any,
        device: torch.device,
        place: Callable[[nn.Module], nn.Module],
    ) -> None:
        self.student, self.scheduler = student, scheduler
        self.options = options if isinstance(options, FinetuneOptions) else None
        self.teacher: nn.Module | None = None
        self.matched = Matched({})
        if teacher is not None and self.options is not None:
            self.teacher = place(_answering(copy.deepcopy(teacher), device, self.options.teacher_dtype))
            if self.options.feature_weight:
                self.matched = matched_blocks(denoiser, teacher)

    def watching(self) -> AbstractContextManager[list[Tensor]]:
        """Collect what the student's blocks give in a forward pass."""
        return self.matched.watched(self.student)

    def loss(self, output: Tensor, features: list[Tensor], batch: NoisyBatch, timesteps: Tensor) -> Tensor:
        """Of the student's output (N, ...) and features. timesteps: (N,), of the schedule."""
        options, weights = self.options, None
        if options is not None and options.loss_weighting == "min-snr":
            weights = min_snr_weights(self.scheduler, timesteps).to(output.device)
        if options is None or self.teacher is None:
            return denoising_loss(output, batch.target, weights)
        with torch.no_grad(), self.matched.watched(self.teacher) as taught:
            answer = predict(self.teacher, batch.noisy, batch.timesteps, batch.condition)
        loss = distillation_loss(output, batch.target, answer, options.teacher_weight, weights)
        if options.feature_weight:
            loss = loss + options.feature_weight * feature_loss(features, self.matched.of_teacher(taught))
        return loss


def _answering(teacher: nn.Module, device: torch.device, dtype: str) -> nn.Module:
    """A teacher in eval mode without gradients; `auto` is bf16 for a GPU, and as it is elsewhere."""
    teacher.eval().requires_grad_(False)
    if dtype == "bf16" or (dtype == "auto" and device.type == "cuda"):
        return nn.Module.to(teacher, torch.bfloat16)
    return nn.Module.float(teacher) if dtype == "fp32" else teacher
