"""Whether a denoiser can be pruned as it is: nothing wrapped around it, put into it, quantised or shared."""

from collections import defaultdict
from collections.abc import Iterator, Mapping

from accelerate.hooks import AlignDevicesHook, CpuOffload, SequentialHook
from diffusers.configuration_utils import ConfigMixin
from diffusers.utils.torch_utils import is_compiled_module
from torch import nn

from diffprune.artifact.pruned_classes import stock_model
from diffprune.errors import ModelError

_QUANTISERS = ("bitsandbytes", "torchao", "optimum", "modelopt", "nunchaku", "sdnq", "torch.ao", "diffusers.quantizers")
"""Libraries whose layers and tensors hold quantised weights."""


def check_unwrapped(module: object) -> None:
    """Raise ModelError where a denoiser, or the pipeline's, is inside a wrapper; the message says how to get it out."""
    if isinstance(module, nn.Module) and is_compiled_module(module):
        raise ModelError(
            "the denoiser is wrapped by torch.compile; give the model itself (`compiled._orig_mod`), "
            "and compile the result"
        )
    if any(kind.__name__ == "PeftModel" for kind in type(module).__mro__):
        raise ModelError(
            "the denoiser is wrapped in a PeftModel; give what `merge_and_unload()` returns, or what `unload()` does"
        )


def check_sound(denoiser: nn.Module) -> None:
    """Raise ModelError that lists all that keeps a denoiser from being pruned, each with its remedy."""
    checks = (_compiled, _quantised, _adapted, _fused, _hooked, _shared)
    mistakes = [mistake for check in checks if (mistake := check(denoiser)) is not None]
    if mistakes:
        lines = "\n".join(f"  {m}" for m in mistakes)
        raise ModelError(f"this {type(denoiser).__name__} cannot be pruned as it is:\n{lines}")


def _compiled(denoiser: nn.Module) -> str | None:
    found = [
        path
        for path, module in denoiser.named_modules()
        if is_compiled_module(module) or vars(module).get("_compiled_call_impl") is not None
    ]
    return _told("compiled", found, "load the model anew, prune it, and compile the result")


def _quantised(denoiser: nn.Module) -> str | None:
    config = getattr(denoiser, "config", None)
    method = config.get("quantization_config") if isinstance(config, Mapping) else None
    found = [path for path, module in denoiser.named_modules() if _comes_from(module, _QUANTISERS)]
    found += [name for name, parameter in denoiser.named_parameters() if _is_quantised(parameter)]
    if not found and (method is not None or getattr(denoiser, "hf_quantizer", None) is not None):
        found = ["its config"]
    return _told("quantised", found, "prune the model in fp32, fp16 or bf16, and quantise the result")


def _is_quantised(parameter: nn.Parameter) -> bool:
    narrow = not parameter.dtype.is_floating_point or parameter.dtype.itemsize < 2
    return narrow or _comes_from(parameter, _QUANTISERS)


def _adapted(denoiser: nn.Module) -> str | None:
    found = [path for path, module in denoiser.named_modules() if _comes_from(module, ("peft",))]
    remedy = (
        "fuse_lora() and then unload_lora() to keep what they do, or unload_lora() alone; add adapters to the result"
    )
    return _told("with adapters", found, remedy)


def _fused(denoiser: nn.Module) -> str | None:
    found = [path for path, module in denoiser.named_modules() if vars(module).get("fused_projections") is True]
    return _told(
        "fused q, k and v",
        found,
        "unfuse_qkv_projections(), or load the model anew where that leaves them; fuse them in the result",
    )


def _hooked(denoiser: nn.Module) -> str | None:
    found = [path for path, module in denoiser.named_modules() if _is_hooked(module)]
    remedy = "pipeline.remove_all_hooks(), or load it anew; switch offloading, casting and caches on in the result"
    return _told("offloaded, or changed by hooks", found, remedy)


def _is_hooked(module: nn.Module) -> bool:
    registry = getattr(vars(module).get("_diffusers_hook"), "hooks", None)
    hook = vars(module).get("_hf_hook")
    hooks = hook.hooks if isinstance(hook, SequentialHook) else (hook,)
    return bool(registry) or any(
        isinstance(h, CpuOffload) or (isinstance(h, AlignDevicesHook) and h.offload) for h in hooks
    )


def _shared(denoiser: nn.Module) -> str | None:
    """Modules and parameters in several places, unless the class builds them so."""
    found = set(_shared_places(denoiser))
    if found and isinstance(denoiser, ConfigMixin):
        found -= set(_shared_places(stock_model(denoiser)))
    shown = [" and ".join(places) for places in sorted(found)]
    return _told("shared", shown, "give each place a copy of its own (copy.deepcopy): the config cannot say otherwise")


def _shared_places(model: nn.Module) -> Iterator[tuple[str, ...]]:
    """The paths of every module with weights, and of every parameter, that is in more than one place."""
    places: dict[int, list[str]] = defaultdict(list)
    for path, module in model.named_modules(remove_duplicate=False):
        if any(True for _ in module.parameters()):
            places[id(module)].append(path)
    doubled = [paths for paths in places.values() if len(paths) > 1]
    inside = tuple(f"{path}." for paths in doubled for path in paths)
    yield from (tuple(paths) for paths in doubled if not all(path.startswith(inside) for path in paths))
    tied: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not name.startswith(inside):
            tied[id(parameter)].append(name)
    yield from (tuple(names) for names in tied.values() if len(names) > 1)


def _comes_from(value: object, libraries: tuple[str, ...]) -> bool:
    """Whether the class of a value, or a base of it, is of one of some libraries."""
    homes = (f"{kind.__module__}." for kind in type(value).__mro__)
    return any(home.startswith(tuple(f"{name}." for name in libraries)) for home in homes)


def _told(what: str, found: list[str], remedy: str) -> str | None:
    if not found:
        return None
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return f"{what}: {found[0] or 'the whole model'}{more}; {remedy}"
