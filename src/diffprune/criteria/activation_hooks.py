"""Hooks that pass the inputs and outputs of layers, and their gradients, to a function during backward passes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from diffprune.artifact.slicing import LayerDim

Receive = Callable[[LayerDim, Tensor, Tensor], None]
"""Called with a place, its activations and their gradient."""


class _Tap(torch.autograd.Function):
    """Identity whose backward pass calls `receive` with the values and their gradient.

    Autograd saves the values, so that activation checkpointing can recompute them. `root` requires a gradient because
    no parameter does.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, root: Tensor, receive: Callable[[Tensor, Tensor], None]) -> Tensor:
        ctx.save_for_backward(values)
        ctx.receive = receive
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (values,) = ctx.saved_tensors
        ctx.receive(values, gradient)
        return gradient if ctx.needs_input_grad[0] else None, None, None


@contextmanager
def hooked_activations(denoiser: nn.Module, places: Sequence[LayerDim], receive: Receive) -> Iterator[None]:
    """Pass activations and their gradients to `receive` in backward passes; parameters get no gradients."""
    root = torch.zeros((), requires_grad=True)
    before = [(parameter, parameter.requires_grad) for parameter in denoiser.parameters()]

    def tap(place: LayerDim, values: Any) -> Any:
        if not values.is_floating_point():
            return values

        return cast(Any, _Tap).apply(values, root, partial(receive, place))

    def tap_input(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], place: LayerDim) -> Any:
        if inputs:
            return (tap(place, inputs[0]), *inputs[1:]), named
        name, values = next(iter(named.items()))
        return (), {**named, name: tap(place, values)}

    def tap_output(layer: nn.Module, inputs: Any, output: Any, place: LayerDim) -> Any:
        return tap(place, output)

    handles = []
    for place in places:
        layer = denoiser.get_submodule(place[0])
        if place[1] == "in":
            handles.append(layer.register_forward_pre_hook(partial(tap_input, place=place), with_kwargs=True))
        else:
            handles.append(layer.register_forward_hook(partial(tap_output, place=place)))
    denoiser.requires_grad_(False)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, requires_grad in before:
            parameter.requires_grad_(requires_grad)
