"""What a pipeline tells its denoiser, recorded from the pipeline's own call.

How a family of models is conditioned, how its noisy input is laid out, in which unit it is told the time and with which
sign its output is read: the pipeline knows, and shows it when it is run. Nothing here is about a single family.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from diffprune.errors import ModelError
from diffprune.pipelines.conditioning import are_same, have_rows, leaves_of
from diffprune.pipelines.denoiser_interface import Call, Interface, convention_of, joined_along
from diffprune.pipelines.loading import denoiser_of
from diffprune.pipelines.pipeline_call import run_call, unguided
from diffprune.pipelines.prompts import Prompt

RECORDED_STEPS = 2
"""Steps of a recording: two tell how the denoiser's time grows with the scheduler's."""

STEPS_FROM_IMAGES = 5
"""The same where images are drawn from: some pipelines begin late in the schedule."""


@dataclass(frozen=True)
class Step:
    """What a step of the scheduler was given, at which of its times and for which x_t, and what it made of it."""

    given: Tensor
    time: float
    sample: Tensor
    result: Tensor


class _Heard(Exception):  # noqa: N818 - nothing is wrong
    """Ends a run of a pipeline whose denoiser has been told what there was to hear."""


def find_interface(pipeline: DiffusionPipeline, prompts: Sequence[Prompt], more: Mapping[str, Any]) -> Interface:
    """Run the pipeline for a few steps with some prompts and with one more, without guidance, and compare.

    prompts: of the same images. more: further arguments of its call, such as height and width. Raises ModelError for a
    pipeline whose calls make no sense here.
    """
    generator = torch.Generator().manual_seed(0)
    num = len(prompts)
    try:
        calls, again = (
            _recorded(pipeline, [*prompts, *extra], [generator] * (num + len(extra)), more)
            for extra in ([], prompts[-1:])
        )
    except (IndexError, RuntimeError, ValueError) as error:
        if not prompts[0].images:
            raise
        raise ModelError(
            f"{type(pipeline).__name__} cannot be called with several prompts and these images ({error}); not served"
        ) from error
    first, last = calls[0], calls[-1]
    found = Interface((), convention_of(calls), first.sample.shape[1:], joined_along(first.whole, first.sample))
    told, afterwards, many = (found.conditioning(call.whole, call.told) for call in (first, last, again[0]))
    if not are_same(told, afterwards):
        raise ModelError(f"{type(pipeline).__name__} tells its denoiser other things from step to step; not served")
    few, more_of_them = leaves_of(told), leaves_of(many)
    if len(few) != len(more_of_them):
        raise ModelError(f"{type(pipeline).__name__} tells its denoiser lists of tensors, one per prompt; not served")
    return replace(found, is_rows=tuple(have_rows(a, b, num) for a, b in zip(few, more_of_them, strict=True)))


def record_conditioning(
    pipeline: DiffusionPipeline, prompts: Sequence[Prompt], generators: Sequence[torch.Generator],
    more: Mapping[str, Any],
) -> tuple[Tensor, dict[str, Any]]:  # fmt: skip
    """What the pipeline gives its denoiser for some prompts of the same images: its whole input, and keyword arguments.

    Its call is run up to the first pass, which is left out.
    """
    heard: list[tuple[Tensor, dict[str, Any]]] = []

    def hear(module: nn.Module, args: Any, kwargs: Any) -> None:
        whole, _, told = _arguments(module, args, kwargs)
        if len(whole) == len(prompts):
            heard.append((whole.detach(), told))
        raise _Heard

    handle = denoiser_of(pipeline).register_forward_pre_hook(hear, with_kwargs=True)
    try:
        with listening(pipeline) as (listener, _), suppress(_Heard):
            run_call(listener, prompts, generators, steps_of_recording(prompts), unguided(pipeline, more))
    finally:
        handle.remove()
    if not heard:
        raise ModelError(f"{type(pipeline).__name__} does not call its denoiser with one row a prompt; not served")
    return heard[0]


def generate_latents(
    pipeline: DiffusionPipeline, prompts: Sequence[Prompt], generators: Sequence[torch.Generator], steps: int,
    more: Mapping[str, Any],
) -> Tensor:  # fmt: skip
    """Clean x_0 of the pipeline's own images, in the layout that its denoiser takes: what its last step gives."""
    with listening(pipeline) as (listener, steps_taken):
        run_call(listener, prompts, generators, steps, more)
    return steps_taken[-1].result.detach().float()


def _recorded(
    pipeline: DiffusionPipeline, prompts: Sequence[Prompt], generators: Sequence[torch.Generator],
    more: Mapping[str, Any],
) -> list[Call]:  # fmt: skip
    calls: list[dict[str, Any]] = []
    with listening(pipeline) as (listener, steps), _noting(denoiser_of(pipeline), calls):
        run_call(listener, prompts, generators, steps_of_recording(prompts), unguided(pipeline, more))
    if not calls or len(calls) != len(steps) or len(calls[0]["whole"]) != len(prompts):
        raise ModelError(
            f"{type(pipeline).__name__} called its denoiser {len(calls)} times in {len(steps)} steps, expected one "
            "pass a step with one row a prompt; conditions of such a pipeline are not served"
        )
    return [
        Call(**call, scheduler_time=step.time, given=step.given, sample=step.sample)
        for call, step in zip(calls, steps, strict=True)
    ]


def steps_of_recording(prompts: Sequence[Prompt]) -> int:
    """Steps of a run that is recorded."""
    return STEPS_FROM_IMAGES if prompts[0].images else RECORDED_STEPS


@contextmanager
def listening(
    pipeline: DiffusionPipeline, put: Callable[[Tensor], Tensor] | None = None
) -> Iterator[tuple[Any, list[Step]]]:
    """A copy of the pipeline whose scheduler notes its steps.

    put: what the pipeline gets in place of what the last step makes; None for that itself.
    """
    listener: Any = copy.copy(pipeline)
    listener.set_progress_bar_config(disable=True)
    scheduler = copy.deepcopy(listener.scheduler)
    steps: list[Step] = []
    original = scheduler.step

    signature = inspect.signature(original)

    @functools.wraps(original)  # pipelines look at its parameters to see whether it takes generators
    def step(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        made = original(*args, **kwargs)
        result = made[0] if isinstance(made, tuple) else made.prev_sample
        steps.append(Step(given["model_output"], float(given["timestep"]), given["sample"], result))
        if put is None or steps[-1].time != float(scheduler.timesteps[-1]):
            return made
        return (put(result), *made[1:]) if isinstance(made, tuple) else replace(made, prev_sample=put(result))

    scheduler.step = step
    listener.register_modules(scheduler=scheduler)
    yield listener, steps


@contextmanager
def _noting(denoiser: nn.Module, calls: list[dict[str, Any]]) -> Iterator[None]:
    """Note every pass of a denoiser while it lasts."""

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        whole, time, told = _arguments(module, args, kwargs)
        result = output[0] if isinstance(output, tuple) else output.sample
        calls.append({"whole": whole.detach(), "time": time, "told": told, "output": result.detach()})

    handle = denoiser.register_forward_hook(note, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _arguments(denoiser: nn.Module, args: Any, kwargs: Any) -> tuple[Tensor, float, dict[str, Any]]:
    """The noisy input, the time, and whatever else a denoiser is called with."""
    signature = inspect.signature(type(denoiser).forward)
    told = dict(signature.bind(denoiser, *args, **kwargs).arguments)
    told.pop("self", None)
    noisy, time = told.pop(list(signature.parameters)[1]), told.pop("timestep", None)
    if not isinstance(noisy, Tensor) or time is None:
        raise ModelError(f"{type(denoiser).__name__} is not called with one noisy tensor and a timestep; not served")
    told.pop("return_dict", None)
    told |= told.pop("kwargs", {})
    known = {name: _detached(value) for name, value in told.items() if value is not None}
    times = torch.as_tensor(time).flatten()
    if not bool((times == times[0]).all()):
        raise ModelError(
            f"{type(denoiser).__name__} is told several times at once, as where a frame of a video is given; not served"
        )
    return noisy, float(times[0]), known


def _detached(value: Any) -> Any:
    return tree_map(lambda v: v.detach().clone() if isinstance(v, Tensor) else v, value)
