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
from diffprune.models.conditions import have_rows, leaves_of
from diffprune.models.loading import denoiser_of

UNGUIDED = {"guidance_scale": 1.0}

IMAGES_AT_WILL = ("Flux2Pipeline", "Flux2KleinPipeline")
"""Pipelines whose call takes images too, and draws from prompts alone where there are none."""

RECORDED_STEPS = 2
"""Steps of a recording: two tell how the denoiser's time grows with the scheduler's."""


@dataclass(frozen=True)
class Convention:
    """How a denoiser is told the time and how its output is read.

    Its timestep is offset + scale * the scheduler's; its output is sign times what the scheduler is given.
    """

    scale: float = 1.0
    offset: float = 0.0
    sign: float = 1.0

    def told(self, timesteps: Tensor) -> Tensor:
        """The scheduler's timesteps as the denoiser wants them."""
        plain = self.scale == 1.0 and self.offset == 0.0
        return timesteps if plain else self.offset + self.scale * timesteps.float()


PLAIN = Convention()


@dataclass(frozen=True)
class Call:
    """One recorded pass. told: keyword arguments beside the noisy input and the time. given: what the scheduler got."""

    noisy: Tensor
    time: float
    told: Mapping[str, Any]
    output: Tensor
    scheduler_time: float
    given: Tensor


@dataclass(frozen=True)
class Interface:
    """How a pipeline uses its denoiser, whatever the prompts.

    is_rows: of which leaves (`leaves_of`) of what the denoiser is told there is a row per prompt; the others are shared
    by all prompts. shape: of the noisy input of one prompt.
    """

    is_rows: tuple[bool, ...]
    convention: Convention
    shape: torch.Size


class _Heard(Exception):  # noqa: N818 - nothing is wrong
    """Ends a run of a pipeline whose denoiser has been told what there was to hear."""


def takes_prompts(pipeline: Any) -> bool:
    """Whether a pipeline draws from prompts, and needs no images beside them."""
    known = call_options(pipeline)
    return "prompt" in known and ("image" not in known or type(pipeline).__name__ in IMAGES_AT_WILL)


def find_interface(pipeline: DiffusionPipeline, prompts: Sequence[str], more: Mapping[str, Any]) -> Interface:
    """Run the pipeline for a few steps with some prompts and with one more, without guidance, and compare.

    more: further arguments of its call, such as height and width. Raises ModelError for a pipeline whose calls make no
    sense here.
    """
    generator = torch.Generator().manual_seed(0)
    num = len(prompts)
    calls, again = (
        _recorded(pipeline, [*prompts, *extra], [generator] * (num + len(extra)), more) for extra in ([], prompts[-1:])
    )
    few, many = leaves_of(calls[0].told), leaves_of(again[0].told)
    if len(few) != len(many):
        raise ModelError(f"{type(pipeline).__name__} tells its denoiser lists of tensors, one per prompt; not served")
    is_rows = tuple(have_rows(a, b, num) for a, b in zip(few, many, strict=True))
    return Interface(is_rows, _convention(calls), calls[0].noisy.shape[1:])


def record_told(
    pipeline: DiffusionPipeline, prompts: Sequence[str], generators: Sequence[torch.Generator], more: Mapping[str, Any]
) -> dict[str, Any]:
    """What the pipeline tells its denoiser of some prompts: its call is run up to the first pass, which is left out."""
    heard: list[dict[str, Any]] = []

    def hear(module: nn.Module, args: Any, kwargs: Any) -> None:
        noisy, _, told = _arguments(module, args, kwargs)
        if len(noisy) == len(prompts):
            heard.append(told)
        raise _Heard

    handle = denoiser_of(pipeline).register_forward_pre_hook(hear, with_kwargs=True)
    try:
        with listening(pipeline) as (listener, _), suppress(_Heard):
            run_call(listener, prompts, generators, RECORDED_STEPS, unguided(pipeline, more))
    finally:
        handle.remove()
    if not heard:
        raise ModelError(f"{type(pipeline).__name__} does not call its denoiser with one row a prompt; not served")
    return heard[0]


def generate_latents(
    pipeline: DiffusionPipeline, prompts: Sequence[str], generators: Sequence[torch.Generator], steps: int,
    more: Mapping[str, Any],
) -> Tensor:  # fmt: skip
    """Clean x_0 of the pipeline's own images, in the layout that its denoiser takes: what its last step gives."""
    with listening(pipeline) as (listener, steps_taken):
        run_call(listener, prompts, generators, steps, more)
    return steps_taken[-1][2].detach().float()


def call_options(pipeline: Any) -> set[str]:
    """The names of the arguments that the pipeline's call knows."""
    return set(inspect.signature(type(pipeline).__call__).parameters)


def with_call_options(pipeline: Any, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the wanted arguments that the pipeline's call knows; None stands for its own default."""
    known = call_options(pipeline)
    return {name: value for name, value in wanted.items() if value is not None and name in known}


def _recorded(
    pipeline: DiffusionPipeline, prompts: Sequence[str], generators: Sequence[torch.Generator], more: Mapping[str, Any]
) -> list[Call]:
    calls: list[dict[str, Any]] = []
    with listening(pipeline) as (listener, steps), _noting(denoiser_of(pipeline), calls):
        run_call(listener, prompts, generators, RECORDED_STEPS, unguided(pipeline, more))
    if not calls or len(calls) != len(steps) or len(calls[0]["noisy"]) != len(prompts):
        raise ModelError(
            f"{type(pipeline).__name__} called its denoiser {len(calls)} times in {len(steps)} steps, expected one "
            "pass a step with one row a prompt; conditions of such a pipeline are not served"
        )
    return [
        Call(**call, scheduler_time=float(time), given=given)
        for call, (given, time, _) in zip(calls, steps, strict=True)
    ]


def unguided(pipeline: Any, more: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call with guidance by a second pass switched off."""
    return {**more, **({} if is_told_guidance(pipeline) else UNGUIDED)}


def run_call(
    pipeline: Any, prompts: Sequence[str], generators: Sequence[torch.Generator], steps: int, more: Mapping[str, Any]
) -> None:
    """The pipeline's own call, up to its latents unless `more` says otherwise; the generators stay as they are."""
    with torch.random.fork_rng():  # some pipelines draw from the global state beside their generators
        pipeline(
            prompt=list(prompts),
            generator=[copy_of(generator) for generator in generators],
            num_inference_steps=steps,
            **with_call_options(pipeline, {"output_type": "latent", **more}),
        )


def copy_of(generator: torch.Generator) -> torch.Generator:
    """A generator in the same state, so that drawing from it leaves the other as it is."""
    again = torch.Generator(generator.device)
    again.set_state(generator.get_state())
    return again


def is_told_guidance(pipeline: Any) -> bool:
    """Whether the denoiser is told the strength of guidance, in place of a second pass without prompt."""
    return bool(getattr(denoiser_of(pipeline).config, "guidance_embeds", False))


@contextmanager
def listening(
    pipeline: DiffusionPipeline, put: Callable[[Tensor], Tensor] | None = None
) -> Iterator[tuple[Any, list[tuple[Tensor, float, Tensor]]]]:
    """A copy of the pipeline whose scheduler notes what each step is given, its time, and what it makes of it.

    put: what the pipeline gets in place of what a step makes; None for that itself.
    """
    listener: Any = copy.copy(pipeline)
    listener.set_progress_bar_config(disable=True)
    scheduler = copy.deepcopy(listener.scheduler)
    steps: list[tuple[Tensor, float, Tensor]] = []
    original = scheduler.step

    signature = inspect.signature(original)

    @functools.wraps(original)  # pipelines look at its parameters to see whether it takes generators
    def step(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        made = original(*args, **kwargs)
        result = made[0] if isinstance(made, tuple) else made.prev_sample
        steps.append((given["model_output"], float(given["timestep"]), result))
        if put is None:
            return made
        return (put(result), *made[1:]) if isinstance(made, tuple) else replace(made, prev_sample=put(result))

    scheduler.step = step
    listener.register_modules(scheduler=scheduler)
    yield listener, steps


@contextmanager
def _noting(denoiser: nn.Module, calls: list[dict[str, Any]]) -> Iterator[None]:
    """Note every pass of a denoiser while it lasts."""

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        noisy, time, told = _arguments(module, args, kwargs)
        result = output[0] if isinstance(output, tuple) else output.sample
        calls.append({"noisy": noisy.detach(), "time": time, "told": told, "output": result.detach()})

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
    return noisy, float(time.flatten()[0]) if isinstance(time, Tensor) else float(time), known


def _detached(value: Any) -> Any:
    return tree_map(lambda v: v.detach().clone() if isinstance(v, Tensor) else v, value)


def _convention(calls: Sequence[Call]) -> Convention:
    first, last = calls[0], calls[-1]
    span = last.scheduler_time - first.scheduler_time
    scale = (last.time - first.time) / span if span else first.time / first.scheduler_time
    offset = first.time - scale * first.scheduler_time
    output = first.output[:, : first.given.shape[1]].float()
    given = first.given.float()
    sign = -1.0 if float((output + given).abs().sum()) < float((output - given).abs().sum()) else 1.0
    if not torch.allclose(output * sign, given, rtol=1e-2, atol=1e-3):
        raise ModelError("the pipeline changes its denoiser's output before the scheduler gets it; that is not served")
    return Convention(_snapped(scale, (1.0, -1.0, 1e-3, -1e-3)), _snapped(offset, (0.0, 1.0, 1000.0)), sign)


def _snapped(value: float, usual: Sequence[float]) -> float:
    """A usual value that is meant: times pass through half precision in some pipelines."""
    near = min(usual, key=lambda u: abs(u - value))
    return near if abs(near - value) <= 0.02 * max(abs(near), abs(usual[-1]) * 1e-2) else round(value, 6)
