"""Training objective: denoising loss, output distillation and feature distillation, combined by the options."""

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
from diffprune.training.feature_distillation import MatchedBlocks, matched_blocks
from diffprune.training.losses import denoising_loss, distillation_loss, feature_loss


class Objective:
    """The loss of a forward pass. The teacher, if any, is copied and frozen, in `options.teacher_dtype`.

    denoiser: the student before training was prepared. student: the module that trains, perhaps with adapters.
    place: moves or shards the teacher as the student is. device: where the student computes.
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
        self.matched = MatchedBlocks({})
        if teacher is not None and self.options is not None:
            self.teacher = place(_frozen(copy.deepcopy(teacher), device, self.options.teacher_dtype))
            if self.options.feature_weight:
                self.matched = matched_blocks(denoiser, teacher)

    def recorded_features(self) -> AbstractContextManager[list[Tensor]]:
        """Record the outputs of the student's matched blocks in a forward pass."""
        return self.matched.recorded(self.student)

    def loss(self, output: Tensor, features: list[Tensor], batch: NoisyBatch, timesteps: Tensor) -> Tensor:
        """Return the loss of the student's output (N, ...) and features. timesteps: (N,), of the schedule."""
        options, weights = self.options, None
        if options is not None and options.loss_weighting == "min-snr":
            weights = min_snr_weights(self.scheduler, timesteps).to(output.device)
        if options is None or self.teacher is None:
            return denoising_loss(output, batch.target, weights)
        with torch.no_grad(), self.matched.recorded(self.teacher) as teacher_features:
            teacher_output = predict(self.teacher, batch.noisy, batch.timesteps, batch.condition)
        loss = distillation_loss(output, batch.target, teacher_output, options.teacher_weight, weights)
        if options.feature_weight:
            loss = loss + options.feature_weight * feature_loss(features, self.matched.of_teacher(teacher_features))
        return loss


def _frozen(teacher: nn.Module, device: torch.device, dtype: str) -> nn.Module:
    """Freeze a teacher in eval mode. dtype `auto`: bf16 on a GPU; elsewhere fp32 for fp16, else unchanged."""
    teacher.eval().requires_grad_(False)
    if dtype == "bf16" or (dtype == "auto" and device.type == "cuda"):
        return nn.Module.to(teacher, torch.bfloat16)
    has_fp16 = any(parameter.dtype == torch.float16 for parameter in teacher.parameters())  # bf16 autocast fails on it
    return nn.Module.float(teacher) if dtype == "fp32" or has_fp16 else teacher
