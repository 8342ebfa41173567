"""What a pipeline tells its denoiser, recorded from the pipeline's own call.

How a family of models is conditioned, how its noisy input is laid out, in which unit it is told the time and with which
sign its output is read: the pipeline knows, and shows it when it is run. Nothing here is about a single family.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from diffprune.errors import ModelError
from diffprune.models.loading import denoiser_of

UNGUIDED = {"guidance_scale": 1.0}

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
class Recording:
    """What a denoiser is told of some prompts.

    condition: keyword arguments with one row per prompt in every tensor that has rows. is_rows: of which leaves of
    `condition`, flattened, that is so; the others are shared by all prompts. shape: of the noisy input of one prompt.
    """

    condition: Mapping[str, Any]
    is_rows: tuple[bool, ...]
    convention: Convention
    shape: torch.Size


def takes_prompts(pipeline: Any) -> bool:
    """Whether a pipeline is called with prompts, and not with images beside them."""
    known = call_options(pipeline)
    return "prompt" in known and "image" not in known


def find_rows(pipeline: DiffusionPipeline, prompt: str, more: Mapping[str, Any]) -> tuple[bool, ...]:
    """Of which leaves of what the denoiser is told there is a row per prompt: found by asking with one and with two.

    more: further arguments of the pipeline's call. Raises ModelError for a pipeline whose calls make no sense here.
    """
    generator = torch.Generator().manual_seed(0)
    one, two = (tree_flatten(dict(_recorded(pipeline, [prompt] * n, [generator] * n, more)[0].told))[0] for n in (1, 2))
    if len(one) != len(two):
        raise ModelError(f"{type(pipeline).__name__} tells its denoiser lists with an entry per prompt; not served")
    return tuple(
        isinstance(a, Tensor) and a.ndim > 0 and (len(a), len(b)) == (1, 2) for a, b in zip(one, two, strict=True)
    )


def record_conditions(
    pipeline: DiffusionPipeline, prompts: Sequence[str], generators: Sequence[torch.Generator],
    is_rows: tuple[bool, ...], more: Mapping[str, Any],
) -> Recording:  # fmt: skip
    """Run the pipeline for a few steps, without guidance by a second pass, and note what it tells its denoiser.

    is_rows: as `find_rows` found it. more: further arguments of its call, such as height and width. Raises ModelError
    for a pipeline whose calls make no sense here.
    """
    calls = _recorded(pipeline, prompts, generators, more)
    return Recording(calls[0].told, is_rows, _convention(calls), calls[0].noisy.shape[1:])


def generate_latents(
    pipeline: DiffusionPipeline, prompts: Sequence[str], generators: Sequence[torch.Generator], steps: int,
    more: Mapping[str, Any],
) -> Tensor:  # fmt: skip
    """Clean x_0 of the pipeline's own images, in the layout that its denoiser takes: what its last step gives."""
    with _listening(pipeline) as (listener, steps_taken):
        _run(listener, prompts, generators, steps, more)
    return steps_taken[-1][2].detach().float()


def rows_of(recordings: Sequence[Recording]) -> dict[str, Any]:
    """The conditions of several recordings as one; raises ModelError where their rows have different lengths."""
    first, spec = tree_flatten(dict(recordings[0].condition))
    leaves = [tree_flatten(dict(recording.condition))[0] for recording in recordings]
    joined = []
    for position, leaf in enumerate(first):
        parts = [each[position] for each in leaves]
        if not recordings[0].is_rows[position]:
            joined.append(leaf)
        elif len({part.shape[1:] for part in parts}) > 1:
            raise ModelError(
                "the texts of these prompts differ in length from batch to batch; give a larger batch_size"
            )
        else:
            joined.append(torch.cat(parts))
    return cast(dict[str, Any], tree_unflatten(joined, spec))


def select_rows(
    condition: Mapping[str, Any], is_rows: Sequence[bool], choose: Callable[[Tensor], Tensor]
) -> dict[str, Any]:
    """A condition with `choose` applied to every tensor that has a row per image."""
    leaves, spec = tree_flatten(dict(condition))
    chosen = [choose(leaf) if rows else leaf for leaf, rows in zip(leaves, is_rows, strict=True)]
    return cast(dict[str, Any], tree_unflatten(chosen, spec))


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
    with _listening(pipeline) as (listener, steps), _noting(denoiser_of(pipeline), calls):
        _run(
            listener, prompts, generators, RECORDED_STEPS, {**more, **({} if is_told_guidance(pipeline) else UNGUIDED)}
        )
    if not calls or len(calls) != len(steps) or len(calls[0]["noisy"]) != len(prompts):
        raise ModelError(
            f"{type(pipeline).__name__} called its denoiser {len(calls)} times in {len(steps)} steps, expected one "
            "pass a step with one row a prompt; conditions of such a pipeline are not served"
        )
    return [
        Call(**call, scheduler_time=float(time), given=given)
        for call, (given, time, _) in zip(calls, steps, strict=True)
    ]


def _run(
    pipeline: Any, prompts: Sequence[str], generators: Sequence[torch.Generator], steps: int, more: Mapping[str, Any]
) -> None:
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
def _listening(pipeline: DiffusionPipeline) -> Iterator[tuple[Any, list[tuple[Tensor, float, Tensor]]]]:
    """A copy of the pipeline whose scheduler notes what each step is given, its time, and what it makes of it."""
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
        return made

    scheduler.step = step
    listener.register_modules(scheduler=scheduler)
    yield listener, steps


@contextmanager
def _noting(denoiser: nn.Module, calls: list[dict[str, Any]]) -> Iterator[None]:
    """Note every pass of a denoiser while it lasts."""
    signature = inspect.signature(type(denoiser).forward)
    first = list(signature.parameters)[1]

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        told = dict(signature.bind(module, *args, **kwargs).arguments)
        told.pop("self", None)
        noisy, time = told.pop(first), told.pop("timestep", None)
        if not isinstance(noisy, Tensor) or time is None:
            raise ModelError(f"{type(module).__name__} is not called with one noisy tensor and a timestep; not served")
        told.pop("return_dict", None)
        told |= told.pop("kwargs", {})
        known = {name: _detached(value) for name, value in told.items() if value is not None}
        result = output[0] if isinstance(output, tuple) else output.sample
        time = float(time.flatten()[0]) if isinstance(time, Tensor) else float(time)
        calls.append({"noisy": noisy.detach(), "time": time, "told": known, "output": result.detach()})

    handle = denoiser.register_forward_hook(note, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


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
