"""The precision that denoisers compute in, chosen by device: bf16 by autocast where the device has units for it."""

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

Set = TypeVar("Set", bound=PrecisionOptions)

BF16_UNITS = ("avx512_bf16", "amx_bf16")
"""Names, among the capabilities that torch tells of a CPU, of instructions that multiply in bf16."""

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Precisions that autocast multiplies in."""

FEW_TOKENS = 128
"""Queries and keys up to which attention is trained in fp32 on CPUs."""


def resolve_precision(options: Set) -> Set:
    """The options as they are recorded, with `auto` settled: bf16 where the device is fast in it."""
    return options.model_copy(update={"mixed_precision": _precision_on(pick_device(options.device), options)})


def _precision_on(device: torch.device, options: PrecisionOptions) -> str:
    """What is computed in on a device, where `auto` leaves it to that."""
    if options.mixed_precision != "auto":
        return options.mixed_precision
    return "bf16" if is_fast_in_bf16(device) else "no"


def is_fast_in_bf16(device: torch.device) -> bool:
    """Whether a device has units for bf16: GPUs of compute capability 8.0 and above, CPUs with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    told: Any = getattr(torch.cpu, "get_capabilities", dict)()
    return device.type == "cpu" and any(bool(told.get(name)) for name in BF16_UNITS)


def short_attention_in_fp32() -> AbstractContextManager[Any]:
    """To be entered inside of autocast: what is trained on a CPU computes attention over few tokens in fp32.

    torch's backward pass of it in bf16 takes up to nine times as long; beyond `FEW_TOKENS` the two are near
    each other, or bf16 ahead.
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
    return max(query.shape[-2], key.shape[-2]) <= FEW_TOKENS


def _in_fp32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


@contextmanager
def autocast_forward(options: PrecisionOptions, denoiser: nn.Module, device: torch.device) -> Iterator[None]:
    """Forward passes of a denoiser compute in the precision asked for while it lasts, whoever calls them.

    device: where they compute, wherever the weights wait. With `bf16` products are computed in it by autocast; weights,
    their gradients and the output are fp32. (`fp16`, of training alone, is timed so; its losses are scaled elsewhere.)
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
        with torch.autocast(device.type, DTYPES[precision]), short_attention_in_fp32():
            output = forward(*args, **kwargs)
        return convert_to_fp32(output)

    model.forward = cast
    try:
        yield
    finally:
        if before is None:
            del model.forward
        else:
            model.forward = before
