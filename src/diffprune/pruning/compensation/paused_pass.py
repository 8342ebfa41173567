"""A forward pass that pauses at chosen layers and resumes later, as a greenlet.

Greenlets, since a paused pass then keeps its own stack, and with it only the tensors that its model still needs; and
since all passes share one OS thread. A thread per pass would hold an allocator arena and a cuBLAS workspace each.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from typing import Any, Literal

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from diffprune.pruning.compensation.thread_state import ThreadState


@dataclass(frozen=True)
class Pause:
    """The layer at which a pass has paused: its path, and its first input or its output."""

    path: str
    tensor: Tensor


class PausedPass:
    """One forward pass, which runs only inside `advance`.

    run: computes the output of the pass, without gradients. `output` is None until the pass has ended. All calls come
    from the thread that made the pass.
    """

    def __init__(self, run: Callable[[], Tensor]) -> None:
        self.output: Tensor | None = None
        self._compute = run
        self._greenlet = greenlet(self._run)
        self._greenlet.gr_context = copy_context()
        self._state = ThreadState.current()

    def advance(self) -> Pause | None:
        """Run to the next pause; None when the pass has ended. Raises what the pass raises."""
        return None if self._greenlet.dead else self._resume(self._greenlet.switch)

    def stop(self) -> None:
        """End the pass where it has paused, and release its tensors."""
        if not self._greenlet.dead:
            self._resume(self._greenlet.throw)

    def pause(self, pause: Pause) -> None:
        """Return control to the caller of `advance`. Hooks call it, inside the pass."""
        self._greenlet.parent.switch(pause)

    def _resume(self, switch: Callable[[], Any]) -> Pause | None:
        self._greenlet.parent = getcurrent()
        caller_state = ThreadState.current()
        self._state.replace(caller_state)
        try:
            pause = switch()
        finally:
            self._state = ThreadState.current()
            caller_state.replace(self._state)
        return None if self._greenlet.dead else pause

    def _run(self) -> None:
        _CURRENT.set(self)
        with torch.no_grad():
            self.output = self._compute()


_CURRENT: ContextVar[PausedPass | None] = ContextVar("_CURRENT", default=None)
"""The pass that hooks pause. Each greenlet has a context of its own, so outside of passes it is None."""


@contextmanager
def pausing_at(model: nn.Module, paths: Collection[str], side: Literal["input", "output"]) -> Iterator[None]:
    """Let passes pause at layers inside the block: before a layer with its first input, or after it with its output."""

    def hook(path: str) -> Any:
        def before(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            _pause(path, next(iter((*args, *kwargs.values())), None))

        def after(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            _pause(path, output)

        layer = model.get_submodule(path)
        if side == "input":  # prepended, so that offloaded weights are not on the device during the pause
            return layer.register_forward_pre_hook(before, with_kwargs=True, prepend=True)
        return layer.register_forward_hook(after)

    handles = [hook(path) for path in paths]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _pause(path: str, tensor: Any) -> None:
    current = _CURRENT.get()
    if current is not None and isinstance(tensor, Tensor):
        current.pause(Pause(path, tensor))
