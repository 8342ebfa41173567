"""DDIM and DDPM steps as plain functions of tensors."""

from torch import Tensor


def split_prediction(kind: str, output: Tensor, x_t: Tensor, alpha_bar_t: Tensor) -> tuple[Tensor, Tensor]:
    """Return the clean image x_0 and the noise eps that a denoiser's output predicts.

    kind: epsilon, v_prediction (Salimans and Ho, ICLR 2022) or sample. x_t = sqrt(a) x_0 + sqrt(1 - a) eps.
    """
    signal, noise = alpha_bar_t.sqrt(), (1 - alpha_bar_t).sqrt()
    if kind == "epsilon":
        return (x_t - noise * output) / signal, output
    if kind == "v_prediction":
        return signal * x_t - noise * output, signal * output + noise * x_t
    if kind == "sample":
        return output, (x_t - signal * output) / noise
    raise ValueError(f"unknown prediction type {kind!r}")


def ddim_step(
    x_0: Tensor, eps: Tensor, alpha_bar_t: Tensor, alpha_bar_next: Tensor, eta: float, noise: Tensor | None
) -> Tensor:
    """Return x of the next step by DDIM, equation 12 of Song, Meng and Ermon (ICLR 2021).

    x_0 is not clipped, as published. noise: needed when eta > 0.
    alpha_bar_next: of the next timestep of the grid, 1 after the last.
    """
    variance = eta**2 * (1 - alpha_bar_next) / (1 - alpha_bar_t) * (1 - alpha_bar_t / alpha_bar_next)
    x_next = alpha_bar_next.sqrt() * x_0 + (1 - alpha_bar_next - variance).clamp(min=0).sqrt() * eps
    return x_next if noise is None else x_next + variance.sqrt() * noise


def ddpm_step(x_0: Tensor, x_t: Tensor, alpha_bar_t: Tensor, alpha_bar_next: Tensor, noise: Tensor | None) -> Tensor:
    """Return x of the next step by ancestral sampling, equation 7 of Ho, Jain and Abbeel (NeurIPS 2020).

    The variance is beta and x_0 is clipped to [-1, 1]. On a strided grid beta is 1 - alpha_bar_t / alpha_bar_next.
    noise: None at the last step.
    """
    beta = 1 - alpha_bar_t / alpha_bar_next
    mean = (alpha_bar_next.sqrt() * beta * x_0.clamp(-1, 1) + (1 - beta).sqrt() * (1 - alpha_bar_next) * x_t) / (
        1 - alpha_bar_t
    )
    return mean if noise is None else mean + beta.sqrt() * noise
