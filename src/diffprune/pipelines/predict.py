"""One forward pass of a denoiser."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from diffprune.pipelines.conditioning import JOINED


def predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, condition: Mapping[str, Any]) -> Tensor:
    """One forward pass: noisy images (N, ...), (N,) timesteps and a condition -> the prediction, as `noisy`.

    The noisy input comes first in every denoiser, whatever its name; all else goes by name. Floats but the timesteps
    are brought to the dtype of the denoiser. What the condition holds as `JOINED` is joined to the noisy input. What
    the output has beyond its shape is left out: a learned variance, or what stands for the part that was joined.
    """
    dtype = denoiser.dtype if isinstance(denoiser, ModelMixin) else next(denoiser.parameters()).dtype
    noisy = noisy.to(dtype)
    told = tree_map(lambda v: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v, dict(condition))
    joined = told.pop(JOINED, None)
    whole = noisy if joined is None else torch.cat([noisy, joined["part"]], joined["axis"])
    output: Tensor = denoiser(whole, timestep=timesteps, **told, return_dict=False)[0]
    if joined is None and output.shape[1] != 2 * noisy.shape[1]:
        return output
    return output[tuple(slice(size) for size in noisy.shape)]
