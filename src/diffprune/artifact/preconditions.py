"""Check that a denoiser can be pruned: refuse wrapped, compiled, quantized, hooked, adapted and tied models."""

from collections import defaultdict
from collections.abc import Iterator, Mapping

from accelerate.hooks import AlignDevicesHook, CpuOffload, SequentialHook
from diffusers.configuration_utils import ConfigMixin
from diffusers.utils.torch_utils import is_compiled_module
from torch import nn

from diffprune.artifact.pruned_classes import stock_model
from diffprune.errors import ModelError

_QUANTIZERS = ("bitsandbytes", "torchao", "optimum", "modelopt", "nunchaku", "sdnq", "torch.ao", "diffusers.quantizers")
"""Libraries whose layers and tensors hold quantized weights."""


def check_unwrapped(module: object) -> None:
    """Raise ModelError if a denoiser is wrapped by torch.compile or PEFT; the message says how to unwrap it."""
    if isinstance(module, nn.Module) and is_compiled_module(module):
        raise ModelError(
            "the denoiser is wrapped by torch.compile; pass the original model (`compiled._orig_mod`), "
            "and compile the result"
        )
    if any(kind.__name__ == "PeftModel" for kind in type(module).__mro__):
        raise ModelError(
            "the denoiser is wrapped in a PeftModel; pass the result of `merge_and_unload()` or of `unload()`"
        )


def check_sound(denoiser: nn.Module) -> None:
    """Raise ModelError with every reason why a denoiser cannot be pruned, each with its remedy."""
    checks = (_compiled, _quantized, _adapted, _fused, _hooked, _shared)
    mistakes = [mistake for check in checks if (mistake := check(denoiser)) is not None]
    if mistakes:
        lines = "\n".join(f"  {m}" for m in mistakes)
        raise ModelError(f"this {type(denoiser).__name__} cannot be pruned as it is:\n{lines}")


def _compiled(denoiser: nn.Module) -> str | None:
    compiled = [
        path
        for path, module in denoiser.named_modules()
        if is_compiled_module(module) or vars(module).get("_compiled_call_impl") is not None
    ]
    return _mistake("compiled", compiled, "load the model again, prune it, and compile the result")


def _quantized(denoiser: nn.Module) -> str | None:
    config = getattr(denoiser, "config", None)
    method = config.get("quantization_config") if isinstance(config, Mapping) else None
    quantized = [path for path, module in denoiser.named_modules() if _comes_from(module, _QUANTIZERS)]
    quantized += [name for name, parameter in denoiser.named_parameters() if _is_quantized(parameter)]
    if not quantized and (method is not None or getattr(denoiser, "hf_quantizer", None) is not None):
        quantized = ["its config"]
    return _mistake("quantized", quantized, "prune the model in fp32, fp16 or bf16, and quantize the result")


def _is_quantized(parameter: nn.Parameter) -> bool:
    narrow = not parameter.dtype.is_floating_point or parameter.dtype.itemsize < 2
    return narrow or _comes_from(parameter, _QUANTIZERS)


def _adapted(denoiser: nn.Module) -> str | None:
    adapted = [path for path, module in denoiser.named_modules() if _comes_from(module, ("peft",))]
    remedy = (
        "fuse_lora() and then unload_lora() to keep their effect, or unload_lora() alone; add adapters to the result"
    )
    return _mistake("with adapters", adapted, remedy)


def _fused(denoiser: nn.Module) -> str | None:
    fused = [path for path, module in denoiser.named_modules() if vars(module).get("fused_projections") is True]
    return _mistake(
        "fused q, k and v",
        fused,
        "unfuse_qkv_projections(), or load the model again if that has no effect; fuse them in the result",
    )


def _hooked(denoiser: nn.Module) -> str | None:
    hooked = [path for path, module in denoiser.named_modules() if _is_hooked(module)]
    remedy = "pipeline.remove_all_hooks(), or load it again; enable offloading, casting and caches in the result"
    return _mistake("offloaded, or changed by hooks", hooked, remedy)


def _is_hooked(module: nn.Module) -> bool:
    registry = getattr(vars(module).get("_diffusers_hook"), "hooks", None)
    hook = vars(module).get("_hf_hook")
    hooks = hook.hooks if isinstance(hook, SequentialHook) else (hook,)
    return bool(registry) or any(
        isinstance(h, CpuOffload) or (isinstance(h, AlignDevicesHook) and h.offload) for h in hooks
    )


def _shared(denoiser: nn.Module) -> str | None:
    """Modules and parameters at several paths, unless the class itself shares them."""
    shared = set(_shared_paths(denoiser))
    if shared and isinstance(denoiser, ConfigMixin):
        shared -= set(_shared_paths(stock_model(denoiser)))
    shown = [" and ".join(paths) for paths in sorted(shared)]
    return _mistake(
        "shared", shown, "put a copy at each path (copy.deepcopy): the config cannot describe shared layers"
    )


def _shared_paths(model: nn.Module) -> Iterator[tuple[str, ...]]:
    """Yield all paths of each module with weights, and of each parameter, that has more than one path."""
    paths_by_id: dict[int, list[str]] = defaultdict(list)
    for path, module in model.named_modules(remove_duplicate=False):
        if any(True for _ in module.parameters()):
            paths_by_id[id(module)].append(path)
    repeated = [paths for paths in paths_by_id.values() if len(paths) > 1]
    inside = tuple(f"{path}." for paths in repeated for path in paths)
    yield from (tuple(paths) for paths in repeated if not all(path.startswith(inside) for path in paths))
    tied: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not name.startswith(inside):
            tied[id(parameter)].append(name)
    yield from (tuple(names) for names in tied.values() if len(names) > 1)


def _comes_from(value: object, libraries: tuple[str, ...]) -> bool:
    """Return whether the class of a value, or one of its bases, belongs to one of the libraries."""
    homes = (f"{kind.__module__}." for kind in type(value).__mro__)
    return any(home.startswith(tuple(f"{name}." for name in libraries)) for home in homes)


def _mistake(state: str, paths: list[str], remedy: str) -> str | None:
    if not paths:
        return None
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{state}: {paths[0] or 'the whole model'}{more}; {remedy}"
