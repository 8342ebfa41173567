"""Record the forward passes and scheduler steps of a pipeline's own call.

The call shows how the pipeline conditions its denoiser, lays out its latents, and converts timesteps and outputs. So no
family of models needs code of its own here.
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
from diffprune.pipelines.conditioning import are_same, has_batch_dimension, leaves_of
from diffprune.pipelines.denoiser_access import denoiser_of
from diffprune.pipelines.denoiser_interface import Call, Interface, convention_of, joined_along
from diffprune.pipelines.pipeline_call import run_call, unguided
from diffprune.pipelines.prompts import Prompt

RECORDED_STEPS = 2
"""Steps of a recording: two show how the denoiser's timestep depends on the scheduler's."""

RECORDED_STEPS_WITH_IMAGES = 5
"""The same for pipelines with input images: some start late in the schedule."""


@dataclass(frozen=True)
class Step:
    """One step of a scheduler: the model output, timestep and x_t that it received, and its result."""

    model_output: Tensor
    time: float
    sample: Tensor
    result: Tensor


class _RecordingComplete(Exception):  # noqa: N818 - not an error
    """Stops a pipeline after the forward pass that was to be recorded."""


def find_interface(pipeline: DiffusionPipeline, prompts: Sequence[Prompt], more: Mapping[str, Any]) -> Interface:
    """Infer how a pipeline calls its denoiser from two short runs without guidance: with `prompts`, and with one more.

    prompts: all with the same images. more: further arguments of the pipeline's call, such as height and width.
    Raises ModelError for a pipeline whose calls are not supported.
    """
    generator = torch.Generator().manual_seed(0)
    num = len(prompts)
    name = type(pipeline).__name__
    try:
        calls, calls_with_one_more = (
            _recorded_calls(pipeline, [*prompts, *extra], [generator] * (num + len(extra)), more)
            for extra in ([], prompts[-1:])
        )
    except (IndexError, RuntimeError, ValueError) as error:
        if not prompts[0].images:
            raise
        raise ModelError(f"{name} does not support several prompts with these images: {error}") from error
    first, last = calls[0], calls[-1]
    axis = joined_along(first.model_input, first.sample)
    interface = Interface((), convention_of(calls), first.sample.shape[1:], axis)
    at_first, at_last, with_one_more = (
        interface.conditioning(call.model_input, call.conditioning) for call in (first, last, calls_with_one_more[0])
    )
    if not are_same(at_first, at_last):
        raise ModelError(
            f"{name} changes its conditioning between steps, which is not supported (ControlNet does this)"
        )
    leaves, leaves_with_one_more = leaves_of(at_first), leaves_of(with_one_more)
    if len(leaves) != len(leaves_with_one_more):
        raise ModelError(f"{name} passes lists of tensors, one per prompt, to its denoiser, which is not supported")
    pairs = zip(leaves, leaves_with_one_more, strict=True)
    return replace(interface, is_rows=tuple(has_batch_dimension(a, b, num) for a, b in pairs))


def record_conditioning(
    pipeline: DiffusionPipeline, prompts: Sequence[Prompt], generators: Sequence[torch.Generator],
    more: Mapping[str, Any],
) -> tuple[Tensor, dict[str, Any]]:  # fmt: skip
    """Return the denoiser's input and conditioning for prompts with the same images.

    Runs the pipeline's call up to the first forward pass, which is not computed.
    """
    recorded: list[tuple[Tensor, dict[str, Any]]] = []

    def record(module: nn.Module, args: Any, kwargs: Any) -> None:
        model_input, _, conditioning = _split_arguments(module, args, kwargs)
        if len(model_input) == len(prompts):
            recorded.append((model_input.detach(), conditioning))
        raise _RecordingComplete

    handle = denoiser_of(pipeline).register_forward_pre_hook(record, with_kwargs=True)
    try:
        with recorded_scheduler(pipeline) as (copied, _), suppress(_RecordingComplete):
            run_call(copied, prompts, generators, recording_steps(prompts), unguided(pipeline, more))
    finally:
        handle.remove()
    if not recorded:
        raise ModelError(
            f"{type(pipeline).__name__} does not call its denoiser with one row per prompt, which is not supported"
        )
    return recorded[0]


def generate_latents(
    pipeline: DiffusionPipeline, prompts: Sequence[Prompt], generators: Sequence[torch.Generator], steps: int,
    more: Mapping[str, Any],
) -> Tensor:  # fmt: skip
    """Sample clean latents x_0 with a pipeline, in the layout of its denoiser's input: the result of its last step."""
    with recorded_scheduler(pipeline) as (copied, recorded):
        run_call(copied, prompts, generators, steps, more)
    return recorded[-1].result.detach().float()


def recording_steps(prompts: Sequence[Prompt]) -> int:
    """Return the number of inference steps of a recording."""
    return RECORDED_STEPS_WITH_IMAGES if prompts[0].images else RECORDED_STEPS


@contextmanager
def recorded_scheduler(
    pipeline: DiffusionPipeline, replace_result: Callable[[Tensor], Tensor] | None = None
) -> Iterator[tuple[Any, list[Step]]]:
    """Yield a copy of the pipeline, and the list of steps that its scheduler appends to.

    replace_result: result of the last step -> the latents that the pipeline receives instead; None keeps the result.
    """
    copied: Any = copy.copy(pipeline)
    copied.set_progress_bar_config(disable=True)
    scheduler = copy.deepcopy(copied.scheduler)
    steps: list[Step] = []
    original = scheduler.step

    signature = inspect.signature(original)

    @functools.wraps(original)  # pipelines inspect its parameters to see whether it takes generators
    def step(*args: Any, **kwargs: Any) -> Any:
        arguments = signature.bind(*args, **kwargs).arguments
        output = original(*args, **kwargs)
        result = output[0] if isinstance(output, tuple) else output.prev_sample
        steps.append(Step(arguments["model_output"], float(arguments["timestep"]), arguments["sample"], result))
        if replace_result is None or steps[-1].time != float(scheduler.timesteps[-1]):
            return output
        replacement = replace_result(result)
        return (replacement, *output[1:]) if isinstance(output, tuple) else replace(output, prev_sample=replacement)

    scheduler.step = step
    copied.register_modules(scheduler=scheduler)
    yield copied, steps


def _recorded_calls(
    pipeline: DiffusionPipeline, prompts: Sequence[Prompt], generators: Sequence[torch.Generator],
    more: Mapping[str, Any],
) -> list[Call]:  # fmt: skip
    passes: list[dict[str, Any]] = []
    with recorded_scheduler(pipeline) as (copied, steps), _recorded_passes(denoiser_of(pipeline), passes):
        run_call(copied, prompts, generators, recording_steps(prompts), unguided(pipeline, more))
    if not passes or len(passes) != len(steps) or len(passes[0]["model_input"]) != len(prompts):
        raise ModelError(
            f"{type(pipeline).__name__} called its denoiser {len(passes)} times in {len(steps)} steps. Supported: one "
            "forward pass per step with one row per prompt"
        )
    return [
        Call(**call, scheduler_time=step.time, model_output=step.model_output, sample=step.sample)
        for call, step in zip(passes, steps, strict=True)
    ]


@contextmanager
def _recorded_passes(denoiser: nn.Module, passes: list[dict[str, Any]]) -> Iterator[None]:
    """Append every forward pass of a denoiser to `passes`."""

    def record(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        model_input, time, conditioning = _split_arguments(module, args, kwargs)
        prediction = output[0] if isinstance(output, tuple) else output.sample
        call = {"model_input": model_input.detach(), "time": time, "conditioning": conditioning}
        passes.append({**call, "output": prediction.detach()})

    handle = denoiser.register_forward_hook(record, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _split_arguments(denoiser: nn.Module, args: Any, kwargs: Any) -> tuple[Tensor, float, dict[str, Any]]:
    """Split the arguments of a forward pass into noisy input, timestep and conditioning."""
    signature = inspect.signature(type(denoiser).forward)
    arguments = dict(signature.bind(denoiser, *args, **kwargs).arguments)
    arguments.pop("self", None)
    noisy, time = arguments.pop(list(signature.parameters)[1]), arguments.pop("timestep", None)
    if not isinstance(noisy, Tensor) or time is None:
        raise ModelError(f"{type(denoiser).__name__} is not supported: expected one noisy tensor and a timestep")
    arguments.pop("return_dict", None)
    arguments |= arguments.pop("kwargs", {})
    conditioning = {name: _detached(value) for name, value in arguments.items() if value is not None}
    times = torch.as_tensor(time).flatten()
    if not bool((times == times[0]).all()):
        raise ModelError(
            f"{type(denoiser).__name__} gets different timesteps in one forward pass, which is not supported (Wan 2.2 "
            "TI2V does this)"
        )
    return noisy, float(times[0]), conditioning


def _detached(value: Any) -> Any:
    return tree_map(lambda v: v.detach().clone() if isinstance(v, Tensor) else v, value)
