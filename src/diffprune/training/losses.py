"""Training losses: weighted means of squared errors, in fp32."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional


def noise_errors(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error of each image's prediction, (N,), in fp32."""
    return (output.float() - target.float()).square().flatten(1).mean(1)


def denoising_loss(output: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean squared error of the prediction (Ho, Jain and Abbeel, NeurIPS 2020, equation 14).

    weights: (N,), weight of each image's error; None for equal weights.
    """
    if weights is None:
        return functional.mse_loss(output.float(), target.float())
    return (noise_errors(output, target) * weights.float()).mean()


def distillation_loss(
    output: Tensor, target: Tensor, teacher_output: Tensor, teacher_weight: float, weights: Tensor | None = None
) -> Tensor:
    """Return teacher_weight * error to the teacher's output + (1 - teacher_weight) * denoising loss.

    The published research code uses 0.7 (Diff-Pruning, Fang et al. 2023).
    """
    to_teacher = denoising_loss(output, teacher_output, weights)
    return teacher_weight * to_teacher + (1 - teacher_weight) * denoising_loss(output, target, weights)


def feature_loss(students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor:
    """Return the mean over blocks of the squared difference of features, divided by the teacher's mean square.

    Without the division, blocks with large activations would dominate the others and the loss of the output.
    """
    terms = [
        functional.mse_loss(ours.float(), theirs.float()) / theirs.float().square().mean().clamp(min=1e-12)
        for ours, theirs in zip(students, teachers, strict=True)
    ]
    return sum(terms[1:], terms[0]) / len(terms)
