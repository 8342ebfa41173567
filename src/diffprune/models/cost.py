"""What a denoiser costs: parameters, multiply-accumulates, and time on the clock."""

import contextlib
import io
from dataclasses import asdict, dataclass

import torch
import torch_pruning
from torch import nn
from torch.utils._pytree import tree_map
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from diffprune.models.families import family_of
from diffprune.models.resize import on_meta

_ATTENTION_OPS = ("attention", "bmm")
"""Operators that multiply two activations; on the meta device attention runs as two batched products."""

_WARM_UP = 5
"""Passes before the first timed one: libraries choose and cache kernels per shape."""


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
    shadow = on_meta(denoiser).eval()
    inputs = family_of(denoiser).example_inputs(shadow, 1, torch.device("meta"))
    with contextlib.redirect_stdout(io.StringIO()):
        macs, params = torch_pruning.utils.count_ops_and_params(shadow, inputs)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        shadow(**inputs)
    totals = counter.get_flop_counts()["Global"]
    attention = sum(flops for op, flops in totals.items() if any(name in str(op) for name in _ATTENTION_OPS))
    return Cost(params=int(params), macs=int(macs), attention_macs=attention // 2)


def macs_by_layer(denoiser: nn.Module) -> dict[str, int]:
    """MACs of each layer that the count knows, by path; together they are `Cost.macs`."""
    shadow = on_meta(denoiser).eval()
    inputs = family_of(denoiser).example_inputs(shadow, 1, torch.device("meta"))
    with contextlib.redirect_stdout(io.StringIO()):
        _, _, by_module, _ = torch_pruning.utils.count_ops_and_params(shadow, inputs, layer_wise=True)
    paths = {module: path for path, module in shadow.named_modules()}
    return {paths[module]: int(macs) for module, macs in by_module.items() if macs and not any(module.children())}


def latency_ms(denoiser: nn.Module, *, batch_size: int = 1, min_run_time_s: float = 1.0) -> float:
    """Median time of one forward pass in milliseconds, on the model's device and in its dtype."""
    parameter = next(denoiser.parameters())
    inputs = family_of(denoiser).example_inputs(denoiser, batch_size, parameter.device)
    inputs = tree_map(lambda v: v.to(parameter.dtype) if v.is_floating_point() else v, inputs)
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
        measured = timer.blocked_autorange(min_run_time=min_run_time_s)
    denoiser.train(was_training)
    return float(measured.median * 1e3)
