"""Latents and conditioning of text-conditioned models, drawn by the model or encoded from captioned images."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from diffprune.calibration.calibration_set import Calibration, with_noise
from diffprune.calibration.latent_cache import LatentBatch, LatentCache
from diffprune.calibration.texts import Options, Texts, open_texts
from diffprune.compute.placement import restored_devices
from diffprune.data.images import ImageSet, load_batches
from diffprune.data.presets import preprocessing_of
from diffprune.errors import ModelError
from diffprune.options import CalibrationOptions, FinetuneOptions
from diffprune.options.image_options import ImageOptions
from diffprune.options.prompt_options import GenerationOptions
from diffprune.pipelines.conditioning import are_alike, on_device, rows_of, select_rows
from diffprune.pipelines.diffusion import DiffusionProcess
from diffprune.pipelines.latent_layout import find_layout
from diffprune.pipelines.pipeline_call import together, unguided
from diffprune.pipelines.prompts import Prompt, by_images
from diffprune.pipelines.recorder import find_interface, generate_latents, record_conditioning
from diffprune.runs.progress import progress
from diffprune.sampling.sampler import image_generator


def calibrate_on_texts(
    process: DiffusionProcess, options: CalibrationOptions, device: torch.device, store: LatentCache | None = None
) -> Calibration:
    """Return the calibration set of a text-conditioned model: `training_latents`, each `num_noises` times."""
    texts = open_texts(process, options, options.num_calibration_images)
    latents = training_latents(process, texts, options, device, store)
    condition = on_device(latents.condition, device)
    return with_noise(replace(latents, clean=latents.clean.to(device), condition=condition), options)


def training_latents(
    process: DiffusionProcess, texts: Texts, options: Options, device: torch.device, store: LatentCache | None = None
) -> Calibration:
    """Return clean latents and conditioning of each text, on the CPU, without noise.

    Latents are encoded from the images of `texts`, in the layout of the denoiser. Without images the model draws image
    i from text i. Conditioning is recorded from the call of the pipeline. All components return to their devices.
    store: cache of the batches; if it holds all batches, the pipeline is not run. None caches nothing.
    Raises ModelError for a pipeline whose call has an interface that is not supported.
    """
    size, num = options.batch_size, len(texts)
    if isinstance(options, FinetuneOptions):  # the batch size of a forward pass in training
        size = max(1, size // options.accumulation_steps)
    batches = [range(start, min(start + size, num)) for start in range(0, num, size)]
    keys = [_key(texts, batch, options) for batch in batches]
    cached = [None if store is None else store.load(_name(b), key) for b, key in zip(batches, keys, strict=True)]
    missing = [number for number, part in enumerate(cached) if part is None]
    if missing:
        components = [c for c in process.pipeline.components.values() if isinstance(c, nn.Module)]
        with restored_devices(components), _placed(process.pipeline, options, device):
            computed = _computed(process.pipeline, texts, [batches[number] for number in missing], options, device)
            for number, part in zip(missing, computed, strict=True):
                cached[number] = part
                if store is not None:
                    store.save(_name(batches[number]), keys[number], part)
    parts = [part for part in cached if part is not None]
    clean, interface = torch.cat([part.clean for part in parts]), parts[0].interface
    condition = rows_of([part.condition for part in parts], interface.is_rows)
    return Calibration(clean, clean, process.scheduler, condition, interface.is_rows, interface.convention)


@contextmanager
def _placed(pipeline: Any, options: Options, device: torch.device) -> Iterator[None]:
    """Place the pipeline on a device; with `offload`, one network at a time."""
    if not isinstance(options, CalibrationOptions) or options.offload == "none":
        pipeline.to(device)
        yield
        return
    pipeline.enable_model_cpu_offload(device=device)
    try:
        yield
    finally:
        pipeline.remove_all_hooks()


def _computed(
    pipeline: Any, texts: Texts, batches: Sequence[range], options: Options, device: torch.device
) -> Iterator[LatentBatch]:
    """Yield each batch of latents with its recorded conditioning."""
    guided = {} if options.generation_guidance is None else {"guidance_scale": options.generation_guidance}
    more = {**unguided(pipeline, {}), **options.call(), **guided}
    extremes = _extremes(pipeline, texts, more)
    first = texts.prompts[0]
    interface = find_interface(pipeline, _with_texts([first], extremes)[1:] or [first], more)
    draw = _generated if texts.rows is None else partial(_encoded, device=device)
    unit = "own images" if texts.rows is None else "latents of images"
    with progress(unit, sum(map(len, batches)), "images") as advance:
        for batch, clean in zip(batches, draw(pipeline, texts, batches, options, more), strict=True):
            if clean.shape[1:] != interface.shape:
                raise ModelError(
                    f"the latents have the shape {tuple(clean.shape[1:])}, but the denoiser needs "
                    f"{tuple(interface.shape)}; give images of one size"
                )
            conditions = []
            for same in by_images([texts.prompts[i] for i in batch]):
                prompts = _with_texts(same, extremes)
                model_input, kwargs = record_conditioning(pipeline, prompts, [torch.Generator()] * len(prompts), more)
                recorded = interface.conditioning(model_input, kwargs)
                conditions.append(select_rows(recorded, interface.is_rows, range(len(same))))
            condition = rows_of(conditions, interface.is_rows)
            yield LatentBatch(clean.cpu(), on_device(condition, "cpu"), interface)
            advance(len(batch), "")


def _with_texts(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Prompt]:
    """Return the prompts, plus one prompt per text with the images of the first prompt."""
    return [*prompts, *(replace(prompts[0], text=text) for text in texts)]


def _extremes(pipeline: Any, texts: Texts, more: Mapping[str, Any]) -> list[str]:
    """Return the shortest and the longest text if a batch is padded to its longest text; otherwise no text.

    Every batch is recorded together with these texts, so that all batches have the same shape.
    """
    first = texts.prompts[0]
    shortest, longest = (
        record_conditioning(pipeline, [replace(first, text=text)], [torch.Generator()], more)[1]
        for text in texts.extremes
    )
    return [] if are_alike(shortest, longest) else texts.extremes


def _generated(
    pipeline: Any, texts: Texts, batches: Sequence[range], options: Options, more: Mapping[str, Any]
) -> Iterator[Tensor]:
    """Yield clean latents that the model draws, batch by batch."""
    for batch in batches:
        generators = iter(_generators(options, batch))
        parts = [
            generate_latents(pipeline, same, list(islice(generators, len(same))), options.generation_steps, more)
            for same in by_images([texts.prompts[i] for i in batch])
        ]
        yield together(parts)


def _encoded(
    pipeline: Any,
    texts: Texts,
    batches: Sequence[range],
    options: Options,
    more: Mapping[str, Any],
    *,
    device: torch.device,
) -> Iterator[Tensor]:
    """Yield latents encoded from the images of `texts`, batch by batch."""
    layout = find_layout(pipeline, texts.prompts[0], more)
    assert texts.rows is not None
    images = ImageSet(texts.rows, preprocessing_of(options, layout.image_size), 3, str(options.data))
    num_workers = options.num_workers if isinstance(options, FinetuneOptions) else 0
    for pixels in load_batches(images, map(list, batches), num_workers=num_workers):
        yield layout.encode(pixels.to(device))


def _generators(options: Options, batch: range) -> list[torch.Generator]:
    return [image_generator(options.seed, i) for i in batch]


def _name(batch: range) -> str:
    return f"{batch.start:07d}"


def _key(texts: Texts, batch: range, options: Options) -> dict[str, Any]:
    """Return the prompts, options and versions that a batch depends on; the cache adds the model and its files."""
    names = {*GenerationOptions.model_fields, *ImageOptions.model_fields, "seed", "data"}
    return {
        "prompts": [_identity(texts.prompts[i]) for i in batch],
        "extremes": texts.extremes,
        "images": [texts.indices[i] for i in batch] if texts.rows is not None else None,
        "options": options.model_dump(mode="json", include=names),
        "versions": {name: version(name) for name in ("diffusers", "diffprune")},
    }


def _identity(prompt: Prompt) -> dict[str, str]:
    """Return the text of a prompt and the hashes of its images."""
    return {
        "text": prompt.text,
        **{name: sha256(file.read_bytes()).hexdigest() for name, file in prompt.images.items()},
    }
