"""Run one forward pass of any denoiser with the same arguments."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from diffprune.pipelines.conditioning import JOINED


def predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Mapping[str, Any]) -> Tensor:
    """Predict from noisy images (N, ...), timesteps (N,) and a conditioning; return a tensor of the shape of `noisy`.

    The noisy input is the first positional argument of every denoiser; all others are passed by name. Floats except the
    timesteps are cast to the denoiser's dtype. The entry `JOINED` of the conditioning is joined to the noisy input.
    Output beyond the shape of `noisy` is dropped: a learned variance, or the prediction for the joined part.
    """
    dtype = denoiser.dtype if isinstance(denoiser, ModelMixin) else next(denoiser.parameters()).dtype
    noisy = noisy.to(dtype)
    kwargs = tree_map(lambda v: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v, dict(conditioning))
    joined = kwargs.pop(JOINED, None)
    model_input = noisy if joined is None else torch.cat([noisy, joined["part"]], joined["axis"])
    output: Tensor = denoiser(model_input, timestep=timesteps, **kwargs, return_dict=False)[0]
    if joined is None and output.shape[1] != 2 * noisy.shape[1]:
        return output
    return output[tuple(slice(size) for size in noisy.shape)]
