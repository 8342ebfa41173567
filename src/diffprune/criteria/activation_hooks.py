"""Values and gradients of layers' inputs and outputs, without gradients of parameters."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from diffprune.artifact.slicing import LayerDim

Take = Callable[[LayerDim, Tensor, Tensor], None]
"""Called with a place, the values there and their gradient."""


class _Tap(torch.autograd.Function):
    """A tensor as it is, of which `taken` is given the values and the gradient when that is known.

    The values are autograd's to keep, so that activation checkpointing computes them anew. `root` asks for the
    gradient, since no parameter does.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, root: Tensor, taken: Callable[[Tensor, Tensor], None]) -> Tensor:
        ctx.save_for_backward(values)
        ctx.taken = taken
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (values,) = ctx.saved_tensors
        ctx.taken(values, gradient)
        return gradient if ctx.needs_input_grad[0] else None, None, None


@contextmanager
def hooked_activations(denoiser: nn.Module, places: Sequence[LayerDim], take: Take) -> Iterator[None]:
    """While it lasts, backward passes hand the values and gradients at places to `take`; parameters get no gradient."""
    root = torch.zeros((), requires_grad=True)
    wanted = [(parameter, parameter.requires_grad) for parameter in denoiser.parameters()]

    def tap(place: LayerDim, values: Any) -> Any:
        if not values.is_floating_point():
            return values

        return cast(Any, _Tap).apply(values, root, partial(take, place))

    def before(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], place: LayerDim) -> Any:
        if inputs:
            return (tap(place, inputs[0]), *inputs[1:]), named
        name, values = next(iter(named.items()))
        return (), {**named, name: tap(place, values)}

    def behind(layer: nn.Module, inputs: Any, output: Any, place: LayerDim) -> Any:
        return tap(place, output)

    handles = []
    for place in places:
        layer = denoiser.get_submodule(place[0])
        if place[1] == "in":
            handles.append(layer.register_forward_pre_hook(partial(before, place=place), with_kwargs=True))
        else:
            handles.append(layer.register_forward_hook(partial(behind, place=place)))
    denoiser.requires_grad_(False)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, value in wanted:
            parameter.requires_grad_(value)
