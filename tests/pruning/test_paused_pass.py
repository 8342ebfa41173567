"""Passes that pause keep their own settings and tensors, share one thread, and end without a trace."""

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from diffprune.pruning.compensation.paused_pass import Pause, PausedPass, pausing_at
from diffprune.pruning.compensation.thread_state import ThreadState


class Chain(nn.Module):
    """Three layers in a row; `settings()` is entered around the second one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor, settings: Callable[[], AbstractContextManager[None]] = nullcontext) -> Tensor:
        x = self.layers[0](x)
        with settings():
            x = self.layers[1](x)
        return self.layers[2](input=x)


PATHS = ["layers.0", "layers.1", "layers.2"]


@pytest.fixture
def model() -> Chain:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Chain().eval()


def inputs(num: int) -> list[Tensor]:
    return list(torch.randn(num, 2, 4, generator=torch.Generator().manual_seed(1)))


def paths_of(one: PausedPass) -> list[str]:
    paths = []
    while (pause := one.advance()) is not None:
        paths.append(pause.path)
    return paths


@pytest.mark.parametrize("side", ["input", "output"])
def test_a_pass_pauses_at_each_layer_with_its_tensor(model: Chain, side: str) -> None:
    (x,) = inputs(1)
    seen: list[Tensor] = []
    handles = [
        layer.register_forward_hook(
            lambda layer, args, kwargs, output: seen.append(
                output if side == "output" else next(iter((*args, *kwargs.values())))
            ),
            with_kwargs=True,
        )
        for layer in model.layers
    ]
    expected = model(x)
    for handle in handles:
        handle.remove()
    with pausing_at(model, PATHS, side):
        one = PausedPass(lambda: model(x))
        pauses = [one.advance() for _ in range(3)]
        assert one.output is None
        assert one.advance() is one.advance() is None
    assert [pause.path for pause in pauses if pause is not None] == PATHS
    for pause, tensor in zip(pauses, seen, strict=True):
        assert isinstance(pause, Pause)
        assert torch.equal(pause.tensor, tensor)
    assert one.output is not None
    assert torch.equal(one.output, expected)
    assert not one.output.requires_grad


def test_many_passes_take_turns_in_one_thread(model: Chain) -> None:
    images = inputs(300)
    expected = [model(x).detach() for x in images]
    num_threads = threading.active_count()
    in_pass = set()
    handle = model.register_forward_pre_hook(lambda *_: in_pass.add(threading.get_ident()))
    with pausing_at(model, PATHS, "input"):
        passes = [PausedPass(lambda x=x: model(x)) for x in images]
        for path in (*PATHS, None):
            pauses = [one.advance() for one in passes]
            assert {pause and pause.path for pause in pauses} == {path}
            assert threading.active_count() == num_threads
    handle.remove()
    assert in_pass == {threading.get_ident()}
    assert all(torch.equal(one.output, y) for one, y in zip(passes, expected, strict=True) if one.output is not None)
    assert all(one.output is not None for one in passes)


class CountingMode(TorchFunctionMode):
    """Lists the PyTorch functions that are called."""

    def __init__(self) -> None:
        self.functions: list[Any] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.functions.append(func)
        return func(*args, **(kwargs or {}))


@contextmanager
def many_settings(mode: TorchFunctionMode) -> Iterator[None]:
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False), torch.enable_grad(), torch.device("cpu"), mode:
        yield


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_settings_that_a_pass_enters_hold_in_it_alone(model: Chain, order: tuple[int, ...]) -> None:
    """Passes enter and leave autocast, gradients and function modes while others are paused inside of them."""
    model.layers[2].to(torch.bfloat16)
    images, modes = inputs(3), [CountingMode() for _ in range(3)]
    ones, state = torch.ones(2, 2, requires_grad=True), ThreadState.current()
    with pausing_at(model, PATHS, "input"):
        passes = [
            PausedPass(partial(model, x, partial(many_settings, mode))) for x, mode in zip(images, modes, strict=True)
        ]
        for step in range(4):
            for number in order if step % 2 else reversed(order):
                pause = passes[number].advance()
                assert pause is None or pause.path == PATHS[step]
                assert ThreadState.current() == state
                product = ones @ ones
                assert product.dtype == torch.float32
                assert product.requires_grad
    assert all(one.output is not None and one.output.dtype == torch.bfloat16 for one in passes)
    assert [mode.functions.count(nn.functional.linear) for mode in modes] == [1, 1, 1]
    assert all(torch.ones not in mode.functions and torch.Tensor.matmul not in mode.functions for mode in modes)


def test_a_pass_runs_with_the_settings_of_its_caller(model: Chain) -> None:
    (x,) = inputs(1)
    with pausing_at(model, PATHS, "output"):
        with torch.autocast("cpu", torch.bfloat16):
            one = PausedPass(lambda: model(x))
        pauses = [one.advance() for _ in range(3)]
    assert {pause.tensor.dtype for pause in pauses if pause is not None} == {torch.bfloat16}
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_inside_a_pass_reaches_the_caller_with_its_message(model: Chain, error: type[BaseException]) -> None:
    def fail(*_: object) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            raise error("a broken layer")

    model.layers[1].register_forward_pre_hook(fail)
    state = ThreadState.current()
    (x,) = inputs(1)
    with pausing_at(model, PATHS[::2], "input"):
        one = PausedPass(lambda: model(x))
        assert one.advance() is not None
        with pytest.raises(error, match="a broken layer") as raised:
            one.advance()
        assert any(frame.name == "fail" for frame in raised.traceback)
        assert one.advance() is None
        one.stop()
    assert ThreadState.current() == state


def test_a_stopped_pass_leaves_its_contexts_and_releases_its_tensors(model: Chain) -> None:
    alive: list[weakref.ref[Tensor]] = []
    closed = []

    def compute(x: Tensor) -> Tensor:
        hidden = x + 1
        alive.append(weakref.ref(hidden))
        try:
            return model(hidden)
        finally:
            closed.append(x)

    state = ThreadState.current()
    with pausing_at(model, PATHS, "input"):
        passes = [PausedPass(lambda x=x: compute(x)) for x in inputs(3)]
        for one in passes[:2]:
            one.advance()
        assert all(reference() is not None for reference in alive)
        for one in passes:
            one.stop()
            assert one.advance() is None
    assert len(closed) == 2
    assert all(reference() is None for reference in alive)
    assert all(one.output is None for one in passes)
    assert ThreadState.current() == state


def test_layers_outside_of_a_pass_do_not_pause(model: Chain) -> None:
    (x,) = inputs(1)
    expected = model(x)
    with pausing_at(model, PATHS, "input"):
        one = PausedPass(lambda: model(x))
        one.advance()
        assert torch.equal(model(x), expected)
        assert paths_of(one) == PATHS[1:]
