"""Training losses."""

from torch import Tensor
from torch.nn import functional


def denoising_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of the prediction, in fp32 (Ho, Jain and Abbeel, NeurIPS 2020, equation 14)."""
    return functional.mse_loss(output.float(), target.float())


def distillation_loss(output: Tensor, target: Tensor, teacher_output: Tensor, teacher_weight: float) -> Tensor:
    """teacher_weight * error to the teacher's output + (1 - teacher_weight) * denoising loss.

    The published research code uses 0.7 (Diff-Pruning, Fang et al. 2023).
    """
    to_teacher = functional.mse_loss(output.float(), teacher_output.float())
    return teacher_weight * to_teacher + (1 - teacher_weight) * denoising_loss(output, target)
