"""Forward passes that pause at chosen layers, so that several go through two models side by side."""

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

_HERE = threading.local()


@dataclass(frozen=True)
class Pause:
    """Where a pass stands: a layer's path, and the tensor that it is about to take, or that it has just given."""

    path: str
    tensor: Tensor


class _Stopped(BaseException):
    """Ends the thread of a walk that is not needed any more."""


class Walk:
    """One forward pass, in a thread of its own that runs only while the caller waits in `advance`.

    run: the pass; its result is `output` once it has ended. Pauses where `pausing` has put hooks.
    """

    def __init__(self, run: Callable[[], Tensor]) -> None:
        self.output: Tensor | None = None
        self._pause: Pause | None = None
        self._error: BaseException | None = None
        self._stopped = self._ended = False
        self._go, self._there = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._walk, args=(run,), daemon=True)
        self._thread.start()

    def advance(self) -> Pause | None:
        """Go on to the next pause; None when the pass has ended. Raises what the pass raises."""
        if self._ended:
            return None
        self._go.release()
        self._there.acquire()
        if self._error is not None:
            raise self._error
        return self._pause

    def stop(self) -> None:
        """End the pass where it stands."""
        self._stopped = True
        self._go.release()
        self._thread.join()

    def pause(self, path: str, tensor: Tensor) -> None:
        """Called by hooks, inside the thread: hand over to the caller."""
        self._pause = Pause(path, tensor)
        self._there.release()
        self._wait()

    def _wait(self) -> None:
        self._go.acquire()
        self._pause = None
        if self._stopped:
            raise _Stopped

    def _walk(self, run: Callable[[], Tensor]) -> None:
        _HERE.walk = self
        try:
            self._wait()
            with torch.no_grad():
                self.output = run()
        except _Stopped:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self._pause, self._ended = None, True
            self._there.release()


@contextmanager
def pausing(model: nn.Module, paths: Collection[str], at: Literal["input", "output"]) -> Iterator[None]:
    """Make walks pause at layers while it lasts: before a layer with its first input, or after it with its output."""

    def hook(path: str) -> Any:
        def before(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            _pause(path, next(iter((*args, *kwargs.values())), None))

        def after(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            _pause(path, output)

        layer = model.get_submodule(path)
        if at == "input":
            return layer.register_forward_pre_hook(before, with_kwargs=True, prepend=True)  # before weights are brought
        return layer.register_forward_hook(after)

    handles = [hook(path) for path in paths]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _pause(path: str, tensor: Any) -> None:
    walk: Walk | None = getattr(_HERE, "walk", None)
    if walk is not None and isinstance(tensor, Tensor):
        walk.pause(path, tensor)
