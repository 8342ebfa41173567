"""Autocast dtype of a denoiser: bf16 on devices with native bf16 units, fp32 elsewhere, or as the user chose."""

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from accelerate.utils import convert_to_fp32
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from diffprune.compute.device import pick_device
from diffprune.options.option_set import PrecisionOptions

OptionsT = TypeVar("OptionsT", bound=PrecisionOptions)

BF16_UNITS = ("avx512_bf16", "amx_bf16")
"""Capabilities of a CPU, as torch names them, that multiply in bf16."""

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Autocast dtype of each value of `mixed_precision` except `no`."""

MAX_SHORT_TOKENS = 128
"""Largest number of queries and of keys for which attention is trained in fp32 on CPUs."""


def resolve_precision(options: OptionsT) -> OptionsT:
    """Return the options with `mixed_precision` resolved: `auto` is bf16 if the device has bf16 units, else `no`."""
    return options.model_copy(update={"mixed_precision": _precision_on(pick_device(options.device), options)})


def _precision_on(device: torch.device, options: PrecisionOptions) -> str:
    """Return the resolved `mixed_precision` on a device."""
    if options.mixed_precision != "auto":
        return options.mixed_precision
    return "bf16" if is_fast_in_bf16(device) else "no"


def is_fast_in_bf16(device: torch.device) -> bool:
    """Return whether a device has bf16 units: GPUs from compute capability 8.0, CPUs with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)()
    return device.type == "cpu" and any(bool(capabilities.get(name)) for name in BF16_UNITS)


def short_attention_in_fp32() -> AbstractContextManager[Any]:
    """Compute attention over at most `MAX_SHORT_TOKENS` tokens in fp32 when training on a CPU; enter inside autocast.

    torch's backward pass of short attention in bf16 takes up to nine times as long as in fp32. For longer sequences
    the two are close, or bf16 is faster.
    """
    return _ShortAttentionInFp32() if _trains_under_autocast() else nullcontext()


def _trains_under_autocast() -> bool:
    return torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()


class _ShortAttentionInFp32(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not scaled_dot_product_attention or not _is_short(*args, **kwargs) or not _trains_under_autocast():
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            return func(*map(_in_fp32, args), **{name: _in_fp32(value) for name, value in kwargs.items()})


def _is_short(query: Tensor, key: Tensor, *rest: Any, **more: Any) -> bool:
    return max(query.shape[-2], key.shape[-2]) <= MAX_SHORT_TOKENS


def _in_fp32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


@contextmanager
def autocast_forward(options: PrecisionOptions, denoiser: nn.Module, device: torch.device) -> Iterator[None]:
    """Run every forward pass of a denoiser under autocast, whoever calls it.

    Weights, gradients and output of a float32 denoiser are fp32. A bf16 denoiser returns bf16, as its pipeline expects.
    fp16 weights run without autocast, in fp16: CPUs have no kernels that mix fp16 with bf16.
    device: the device that computes, also when the weights are offloaded from it. `fp16` is for training only: the
    trainer scales its losses, and this function is used to time it.
    """
    precision = _precision_on(device, options)
    if precision == "no":
        yield
        return
    model: Any = denoiser
    before = vars(model).get("forward")
    forward = model.forward

    @functools.wraps(forward)
    def cast(*args: Any, **kwargs: Any) -> Any:
        dtype = next(model.parameters()).dtype  # at each call: compensation casts the weights inside the block
        if dtype == torch.float16:
            return forward(*args, **kwargs)
        with torch.autocast(device.type, DTYPES[precision]), short_attention_in_fp32():
            output = forward(*args, **kwargs)
        return output if dtype == torch.bfloat16 else convert_to_fp32(output)

    model.forward = cast
    try:
        yield
    finally:
        if before is None:
            del model.forward
        else:
            model.forward = before
