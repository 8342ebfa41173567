"""What a denoiser costs: parameters, multiply-accumulates, and time on the clock."""

import contextlib
import copy
import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, flex_attention, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from diffprune.architectures.example_inputs.derived_inputs import Inputs
from diffprune.architectures.families import family_of
from diffprune.artifact.slicing import is_weighted, on_meta

_ATTENTION_OPS = ("attention", "bmm")
"""Operators that multiply two activations; on the meta device attention runs as two batched products."""

_WARM_UP = 5
"""Passes before the first timed one: libraries choose and cache kernels per shape."""

MIN_RUN_TIME_S = 1.0
"""How long passes are timed for their median."""


@dataclass(frozen=True)
class Cost:
    """Parameters, and multiply-accumulates of one forward pass of one image.

    macs: torch-pruning's count of layers, which the published figures follow.
    attention_macs: the two products of each attention (q k^T and weights v), which that count leaves out.
    """

    params: int
    macs: int
    attention_macs: int

    def as_dict(self) -> dict[str, int]:
        """The fields as a plain dict."""
        return asdict(self)


def cost_of(denoiser: nn.Module) -> Cost:
    """Count on a copy on the meta device: no weights are needed and nothing is computed."""
    return _counted(denoiser)[0]


def macs_by_layer(denoiser: nn.Module) -> dict[str, int]:
    """MACs of each layer that the count knows, by path; together they are `Cost.macs`."""
    return _counted(denoiser)[1]


def _counted(denoiser: nn.Module) -> tuple[Cost, dict[str, int]]:
    try:
        shadow = on_meta(denoiser).eval().requires_grad_(False)
        return _count(shadow, family_of(denoiser).example_inputs(shadow, 1, torch.device("meta")))
    except (NotImplementedError, RuntimeError, ValueError):  # the forward pass looks at values
        shadow = _with_zeros(denoiser).eval()
        inputs = family_of(denoiser).example_inputs(shadow, 1, torch.device("cpu"))
        with WithoutValues(), sdpa_kernel(SDPBackend.MATH):  # its batched products are counted
            return _count(shadow, inputs)


def _count(model: nn.Module, inputs: Inputs) -> tuple[Cost, dict[str, int]]:
    for layer in model.modules():
        if isinstance(layer, nn.Linear):  # torch-pruning's counting looks at the first argument only
            layer.register_forward_pre_hook(lambda _, args, named: ((*args, *named.values()), {}), with_kwargs=True)
    with contextlib.redirect_stdout(io.StringIO()), _dense_flex_attention():
        macs, params, by_module, _ = torch_pruning.utils.count_ops_and_params(model, inputs, layer_wise=True)
    counter = FlopCounterMode(display=False)
    with counter, _dense_flex_attention(), torch.no_grad():
        model(**inputs)
    flops = counter.get_flop_counts()["Global"]
    attention = sum(n for op, n in flops.items() if any(name in str(op) for name in _ATTENTION_OPS))
    paths = {module: path for path, module in model.named_modules()}
    layers = {paths[module]: int(n) for module, n in by_module.items() if n and not any(module.children())}
    return Cost(params=int(params), macs=int(macs), attention_macs=attention // 2), layers


@contextlib.contextmanager
def _dense_flex_attention() -> Iterator[None]:
    """Count torch's flexible attention as if no block of it were left out: it runs on no device without values."""
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
    """Computes no floating-point values: zeros of the right shape, which take no memory, stand for them.

    Whole numbers and truth values are computed, of zeros where they come from floats: forward passes look at them.
    """

    def __init__(self) -> None:
        cast(Any, super()).__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run operators that give whole numbers, or no new tensor, as they are; of all others only the shapes."""
        given = kwargs or {}
        if func._schema.is_mutable:
            return args[0] if _is_stand_in(args[0]) else func(*args, **given)
        if any(result.alias_info is not None for result in func._schema.returns):
            try:
                return func(*args, **given)
            except RuntimeError:  # a view that wants real strides
                return func(*tree_map(lambda v: v.contiguous() if _is_stand_in(v) else v, args), **given)
        try:
            there = tree_map(lambda v: v.to("meta") if isinstance(v, Tensor) else v, (args, given))
            shapes = func(*there[0], **there[1])
        except (NotImplementedError, RuntimeError):  # the shape depends on values
            return func(*args, **given)
        if not all(isinstance(v, Tensor) and v.is_meta and v.is_floating_point() for v in tree_leaves(shapes)):
            return func(*args, **given)
        return tree_map(lambda v: torch.zeros((), dtype=v.dtype).expand(v.shape), shapes)


def _is_stand_in(value: Any) -> bool:
    """Whether a tensor is one zero that stands for many."""
    return isinstance(value, Tensor) and value.numel() > 1 and not any(value.stride())


def _with_zeros(model: nn.Module) -> nn.Module:
    """A copy on the CPU: weights of products on the meta device, other parameters zero, buffers real."""
    left_out = {id(layer.weight) for layer in model.modules() if is_weighted(layer)}
    shadows = {
        id(p): nn.Parameter(torch.zeros(p.shape, device="meta" if id(p) in left_out else "cpu"), requires_grad=False)
        for p in model.parameters()
    }
    return copy.deepcopy(model, dict(shadows))


def latency_ms(denoiser: nn.Module, *, batch_size: int = 1) -> float:
    """Median time of one forward pass in milliseconds, on the model's device and in its dtype."""
    parameter = next(denoiser.parameters())
    inputs = family_of(denoiser).example_inputs(denoiser, batch_size, parameter.device)
    inputs = tree_map(lambda v: v.to(parameter.dtype) if torch.is_tensor(v) and v.is_floating_point() else v, inputs)
    was_training = denoiser.training
    denoiser.eval()
    with torch.no_grad():
        for _ in range(_WARM_UP):
            denoiser(**inputs)
        timer = Timer(
            "denoiser(**inputs)",
            globals={"denoiser": denoiser, "inputs": inputs},
            num_threads=torch.get_num_threads(),
        )
        measured = timer.blocked_autorange(min_run_time=MIN_RUN_TIME_S)
    denoiser.train(was_training)
    return float(measured.median * 1e3)
