"""Costs of a denoiser: parameters, multiply-accumulates, and measured latency."""

import contextlib
import copy
import io
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar, cast

import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, flex_attention, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from diffprune.architectures.example_inputs.derived_inputs import Inputs
from diffprune.architectures.families import family_of
from diffprune.artifact.slicing import is_weighted, on_meta

T = TypeVar("T")

_ATTENTION_OPS = ("attention", "bmm")
"""Operators that multiply two activations; on the meta device attention runs as two batched matrix products."""

_WARM_UP_PASSES = 5
"""Untimed passes: libraries choose and cache kernels per shape."""

MIN_RUN_TIME_S = 1.0
"""Minimum total time of the timed passes."""


@dataclass(frozen=True)
class Cost:
    """Number of parameters, and of multiply-accumulates (MACs) in one forward pass of one image.

    macs: MACs of the layers as torch-pruning counts them; published figures use this count.
    attention_macs: MACs of q k^T and of weights times v in each attention, which that count omits.
    """

    params: int
    macs: int
    attention_macs: int

    def as_dict(self) -> dict[str, int]:
        """Return the fields as a plain dict."""
        return asdict(self)


@dataclass(frozen=True)
class LayerCost:
    """Parameters and MACs as in `Cost`, and the MACs of each counted layer by path; together they are `macs`."""

    params: int
    macs: int
    macs_by_layer: Mapping[str, int]


def cost_of(denoiser: nn.Module) -> Cost:
    """Count parameters and MACs on a copy on the meta device, without weights or computation."""

    def count(model: nn.Module, inputs: Inputs) -> Cost:
        counter = FlopCounterMode(display=False)
        with counter:
            layers = _count_layers(model, inputs)
        flops = counter.get_flop_counts()["Global"]
        attention = sum(n for op, n in flops.items() if any(name in str(op) for name in _ATTENTION_OPS))
        return Cost(layers.params, layers.macs, attention // 2)

    return _counted(denoiser, count)


def layer_cost_of(denoiser: nn.Module) -> LayerCost:
    """Return `cost_of` without attention, and the MACs of each layer; faster, since no operator is counted."""
    return _counted(denoiser, _count_layers)


def _counted(denoiser: nn.Module, count: Callable[[nn.Module, Inputs], T]) -> T:
    try:
        shadow = on_meta(denoiser).eval().requires_grad_(False)
        return count(shadow, family_of(denoiser).example_inputs(shadow, 1, torch.device("meta")))
    except (NotImplementedError, RuntimeError, ValueError):  # the forward pass reads values
        shadow = _with_zeros(denoiser).eval()
        inputs = family_of(denoiser).example_inputs(shadow, 1, torch.device("cpu"))
        with WithoutValues(), sdpa_kernel(SDPBackend.MATH):  # the counter knows its batched products
            return count(shadow, inputs)


def _count_layers(model: nn.Module, inputs: Inputs) -> LayerCost:
    for layer in model.modules():
        if isinstance(layer, nn.Linear):  # torch-pruning's counter reads positional arguments only
            layer.register_forward_pre_hook(lambda _, args, named: ((*args, *named.values()), {}), with_kwargs=True)
    with contextlib.redirect_stdout(io.StringIO()), _dense_flex_attention():
        macs, params, by_module, _ = torch_pruning.utils.count_ops_and_params(model, inputs, layer_wise=True)
    paths = {module: path for path, module in model.named_modules()}
    layers = {paths[module]: int(n) for module, n in by_module.items() if n and not any(module.children())}
    return LayerCost(int(params), int(macs), layers)


@contextlib.contextmanager
def _dense_flex_attention() -> Iterator[None]:
    """Replace flex attention by dense attention, to count it: it does not run on the meta device."""
    module: Any = flex_attention
    original = module.flex_attention

    def dense(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
        return functional.scaled_dot_product_attention(query, key, value, enable_gqa=query.shape[1] != key.shape[1])

    module.flex_attention = dense
    try:
        yield
    finally:
        module.flex_attention = original


class WithoutValues(TorchDispatchMode):
    """Replace every floating-point result by expanded zeros of the same shape, which take no memory or time.

    Integers and booleans are computed, because forward passes read them; those computed from floats see zeros.
    """

    def __init__(self) -> None:
        cast(Any, super()).__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run operators that return integers or views; infer only the output shapes of all others."""
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            return args[0] if _is_expanded_zero(args[0]) else func(*args, **kwargs)
        if any(result.alias_info is not None for result in func._schema.returns):
            try:
                return func(*args, **kwargs)
            except RuntimeError:  # a view that needs real strides
                return func(*tree_map(lambda v: v.contiguous() if _is_expanded_zero(v) else v, args), **kwargs)
        try:
            meta_args, meta_kwargs = tree_map(lambda v: v.to("meta") if isinstance(v, Tensor) else v, (args, kwargs))
            shapes = func(*meta_args, **meta_kwargs)
        except (NotImplementedError, RuntimeError):  # the shape depends on values
            return func(*args, **kwargs)
        if not all(isinstance(v, Tensor) and v.is_meta and v.is_floating_point() for v in tree_leaves(shapes)):
            return func(*args, **kwargs)
        return tree_map(lambda v: torch.zeros((), dtype=v.dtype).expand(v.shape), shapes)


def _is_expanded_zero(value: Any) -> bool:
    """Return whether a tensor is a single value expanded to a shape."""
    return isinstance(value, Tensor) and value.numel() > 1 and not any(value.stride())


def _with_zeros(model: nn.Module) -> nn.Module:
    """Return a copy with weights of layers on the meta device, zeros as other parameters, and real buffers."""
    weights = {id(layer.weight) for layer in model.modules() if is_weighted(layer)}
    shadows = {
        id(p): nn.Parameter(torch.zeros(p.shape, device="meta" if id(p) in weights else "cpu"), requires_grad=False)
        for p in model.parameters()
    }
    return copy.deepcopy(model, dict(shadows))


def latency_ms(denoiser: nn.Module, *, batch_size: int = 1) -> float:
    """Measure the median time of one forward pass in milliseconds, on the model's device and in its dtype."""
    parameter = next(denoiser.parameters())
    inputs = family_of(denoiser).example_inputs(denoiser, batch_size, parameter.device)
    inputs = tree_map(lambda v: v.to(parameter.dtype) if torch.is_tensor(v) and v.is_floating_point() else v, inputs)
    was_training = denoiser.training
    denoiser.eval()
    with torch.no_grad():
        for _ in range(_WARM_UP_PASSES):
            denoiser(**inputs)
        timer = _benchmark().Timer(
            "denoiser(**inputs)",
            globals={"denoiser": denoiser, "inputs": inputs},
            num_threads=torch.get_num_threads(),
        )
        measured = timer.blocked_autorange(min_run_time=MIN_RUN_TIME_S)
    denoiser.train(was_training)
    return float(measured.median * 1e3)


def _benchmark() -> Any:
    """Import torch.utils.benchmark when it is needed, without its warning about a missing CUDA runtime.

    It imports torch.utils.cpp_extension, which warns on machines that have the CUDA toolkit but no CUDA device.
    """
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        from torch.utils import benchmark
    finally:
        logger.setLevel(level)
    return benchmark
