"""Latents of text-conditioned models, their own or those of captioned images, with what their denoiser is told."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from diffprune.data.calibration import GENERATED, Calibration, with_noise
from diffprune.data.captions import captions_of
from diffprune.data.images import ImageSet, load_batches, load_image, open_rows, row_name, rows_at
from diffprune.data.presets import preprocessing_of
from diffprune.data.stored import Store, Told
from diffprune.errors import DataError, ModelError, OptionError
from diffprune.models.conditions import are_alike, on_device, rows_of, select_rows
from diffprune.models.latent_layout import find_layout
from diffprune.models.process import DiffusionProcess
from diffprune.models.prompts import read_prompts
from diffprune.models.recording import (
    UNGUIDED,
    call_options,
    find_interface,
    generate_latents,
    is_told_guidance,
    record_told,
)
from diffprune.models.state import given_back
from diffprune.options import FinetuneOptions, PlanOptions
from diffprune.options.images import ImageOptions
from diffprune.options.prompting import GenerationOptions
from diffprune.progress import progress
from diffprune.sampling.by_pipeline import check_text_encoder
from diffprune.sampling.sampler import image_generator

_log = logging.getLogger(__name__)

Options = PlanOptions | FinetuneOptions


@dataclass(frozen=True)
class Texts:
    """What a text-conditioned model is to learn from: a text for each image, and the images, None for the model's own.

    rows: of DATA. indices: their numbers in it.
    """

    texts: Sequence[str]
    rows: Sequence[Any] | None = None
    indices: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def extremes(self) -> list[str]:
        """The shortest and the longest text."""
        return [min(self.texts, key=len), max(self.texts, key=len)]


def open_texts(process: DiffusionProcess, options: Options, num: int, *, at_most: bool = False) -> Texts:
    """The texts of `num` images, all checks done that need no model: prompts in turn, or captions of images by seed.

    at_most: take the images that there are where there are fewer. Raises OptionError, DataError or ModelError where
    prompts or captions are missing, or the pipeline cannot be called as asked.
    """
    pipeline = process.pipeline
    check_text_encoder(pipeline)
    unknown = [name for name, value in options.call().items() if value and name not in call_options(pipeline)]
    if unknown:
        raise OptionError(f"{', '.join(unknown)}: the call of {type(pipeline).__name__} has no such argument")
    if options.data != GENERATED:
        return _captioned(options, num, at_most)
    if options.prompts is None:
        raise OptionError("prompts: missing; the model is conditioned on text: give a file of prompts, one a line")
    prompts = read_prompts(options.prompts)
    return Texts([prompts[i % len(prompts)] for i in range(num)])


def _captioned(options: Options, num: int, at_most: bool) -> Texts:
    assert options.data is not None
    captions = captions_of(options.data)
    if options.prompts is not None and not (isinstance(options, FinetuneOptions) and options.preview_every):
        raise OptionError("prompts: the captions of the images take their place; leave it out")
    rows = open_rows(options.data)
    if len(rows) < num and not at_most:
        raise DataError(
            f"{options.data} holds {len(rows)} images, the calibration needs {num}; give more images or set "
            f"num_calibration_images to at most {len(rows)}"
        )
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(options.seed)).tolist()
    chosen = order[:num] if options.on_corrupt == "fail" else _readable(options.data, rows, order, num)
    if not chosen or (len(chosen) < num and not at_most):
        raise DataError(f"{options.data}: only {len(chosen)} of {len(rows)} images can be read, expected {num}")
    return Texts([captions[i] for i in chosen], rows_at(rows, chosen), chosen)


def _readable(source: str, rows: Sequence[Any], order: Sequence[int], num: int) -> list[int]:
    found: list[int] = []
    for index in order:
        if len(found) == num:
            break
        try:
            load_image(rows[index], row_name(rows[index], f"image {index} of {source}"))
        except DataError as error:
            _log.warning("left out: %s", error)
        else:
            found.append(index)
    return found


def calibrate_on_texts(
    process: DiffusionProcess, options: PlanOptions, device: torch.device, store: Store | None = None
) -> Calibration:
    """Calibration of a text-conditioned model, as `told_latents`, each `num_noises` times."""
    texts = open_texts(process, options, options.num_calibration_images)
    told = told_latents(process, texts, options, device, store)
    on = replace(told, clean=told.clean.to(device), condition=on_device(told.condition, device))
    return with_noise(on, options)


def told_latents(
    process: DiffusionProcess, texts: Texts, options: Options, device: torch.device, store: Store | None = None
) -> Calibration:
    """Clean latents of each text, with what the denoiser is told of it, on the CPU; no noise yet.

    Without images in `texts` they are the model's own, image i of text i; otherwise the images go through the
    pipeline's autoencoder into the layout of its denoiser. What the denoiser is told is recorded from the pipeline's
    own call. After that no component but the denoiser is needed, and all are back where they were.
    store: where batches are kept and found again; with all of them there, the pipeline is not run.
    Raises ModelError for a pipeline whose calls cannot be made sense of.
    """
    size, num = options.batch_size, len(texts)
    if isinstance(options, FinetuneOptions):  # as many at once as a forward pass of training takes
        size = max(1, size // options.accumulation_steps)
    batches = [range(start, min(start + size, num)) for start in range(0, num, size)]
    keys = [_key(texts, batch, options) for batch in batches]
    found = [None if store is None else store.load(_name(b), key) for b, key in zip(batches, keys, strict=True)]
    missing = [number for number, told in enumerate(found) if told is None]
    if missing:
        components = [c for c in process.pipeline.components.values() if isinstance(c, nn.Module)]
        with given_back(components), _placed(process.pipeline, options, device):
            made = _made(process.pipeline, texts, [batches[number] for number in missing], options, device)
            for number, told in zip(missing, made, strict=True):
                found[number] = told
                if store is not None:
                    store.save(_name(batches[number]), keys[number], told)
    parts = [told for told in found if told is not None]
    clean, interface = torch.cat([part.clean for part in parts]), parts[0].interface
    condition = rows_of([part.condition for part in parts], interface.is_rows)
    return Calibration(clean, clean, process.scheduler, condition, interface.is_rows, interface.convention)


@contextmanager
def _placed(pipeline: Any, options: Options, device: torch.device) -> Iterator[None]:
    """Compute on a device while it lasts; with `offload`, one network of the pipeline after the other."""
    if not isinstance(options, PlanOptions) or options.offload == "none":
        pipeline.to(device)
        yield
        return
    pipeline.enable_model_cpu_offload(device=device)
    try:
        yield
    finally:
        pipeline.remove_all_hooks()


def _made(
    pipeline: Any, texts: Texts, batches: Sequence[range], options: Options, device: torch.device
) -> Iterator[Told]:
    guided = {} if options.generation_guidance is None else {"guidance_scale": options.generation_guidance}
    more = {**({} if is_told_guidance(pipeline) else UNGUIDED), **options.call(), **guided}
    beside = _extremes(pipeline, texts, more)
    interface = find_interface(pipeline, beside or texts.texts[:1], more)
    draw = _own if texts.rows is None else partial(_encoded, device=device)
    words = "own images" if texts.rows is None else "latents of images"
    with progress(words, sum(map(len, batches)), "images") as advance:
        for batch, clean in zip(batches, draw(pipeline, texts, batches, options, more), strict=True):
            if clean.shape[1:] != interface.shape:
                raise ModelError(
                    f"the pipeline's latents have the shape {tuple(clean.shape[1:])}, its denoiser takes "
                    f"{tuple(interface.shape)}; extra inputs are not served"
                )
            prompts = [*(texts.texts[i] for i in batch), *beside]
            told = record_told(pipeline, prompts, [torch.Generator()] * len(prompts), more)
            condition = select_rows(told, interface.is_rows, range(len(batch)))
            yield Told(clean.cpu(), on_device(condition, "cpu"), interface)
            advance(len(batch), "")


def _extremes(pipeline: Any, texts: Texts, more: Mapping[str, Any]) -> list[str]:
    """The shortest and the longest text, where texts are padded to the longest of a batch; none where all are alike.

    Told beside every batch, they make all batches alike.
    """
    told = (record_told(pipeline, [text], [torch.Generator()], more) for text in texts.extremes)
    return [] if are_alike(next(told), next(told)) else texts.extremes


def _own(
    pipeline: Any, texts: Texts, batches: Sequence[range], options: Options, more: Mapping[str, Any]
) -> Iterator[Tensor]:
    for batch in batches:
        prompts, generators = [texts.texts[i] for i in batch], _generators(options, batch)
        yield generate_latents(pipeline, prompts, generators, options.generation_steps, more)


def _encoded(
    pipeline: Any,
    texts: Texts,
    batches: Sequence[range],
    options: Options,
    more: Mapping[str, Any],
    *,
    device: torch.device,
) -> Iterator[Tensor]:
    layout = find_layout(pipeline, texts.texts[0], more)
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
    """What a batch depends on, beside the model and the bytes of files."""
    names = {*GenerationOptions.model_fields, *ImageOptions.model_fields, "seed", "data"}
    return {
        "texts": [texts.texts[i] for i in batch],
        "beside": texts.extremes,
        "images": [texts.indices[i] for i in batch] if texts.rows is not None else None,
        "options": options.model_dump(mode="json", include=names),
        "versions": {name: version(name) for name in ("diffusers", "diffprune")},
    }
