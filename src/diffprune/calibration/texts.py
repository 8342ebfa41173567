"""Open and check the prompts or captioned images of a text-conditioned model."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from diffprune.calibration.calibration_set import GENERATED, too_few_readable
from diffprune.calibration.captions import open_captioned
from diffprune.data.images import load_image, row_name, rows_at
from diffprune.errors import DataError, OptionError
from diffprune.options import CalibrationOptions, FinetuneOptions
from diffprune.pipelines.diffusion import DiffusionProcess
from diffprune.pipelines.pipeline_call import call_options
from diffprune.pipelines.prompts import Prompt, read_prompts
from diffprune.sampling.pipeline_sampling import check_images, check_text_encoder, with_unknown

_log = logging.getLogger(__name__)

Options = CalibrationOptions | FinetuneOptions


@dataclass(frozen=True)
class Texts:
    """A prompt for each image.

    Attributes:
        prompts: one prompt per image.
        rows: rows of DATA; None if the model draws the images.
        indices: numbers of the rows in DATA.
    """

    prompts: Sequence[Prompt]
    rows: Sequence[Any] | None = None
    indices: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def extremes(self) -> list[str]:
        """Return the shortest and the longest text."""
        texts = [prompt.text for prompt in self.prompts]
        return [min(texts, key=len), max(texts, key=len)]


def open_texts(process: DiffusionProcess, options: Options, num: int, *, at_most: bool = False) -> Texts:
    """Return the texts of `num` images: a cycle of the prompts, or the captions of images drawn by seed.

    at_most: if there are fewer than `num` images, use all of them.
    Raises OptionError, DataError or ModelError if prompts or captions are missing, or if the pipeline does not support
    the options.
    """
    pipeline = process.pipeline
    check_text_encoder(pipeline)
    unknown = with_unknown(pipeline, options)
    if unknown:
        raise OptionError(f"{', '.join(unknown)}: not supported by the call of {type(pipeline).__name__}; leave it out")
    if options.data != GENERATED:
        return _captioned(pipeline, options, num, at_most)
    if options.prompts is None:
        raise OptionError("prompts: missing; the model is conditioned on text; give a file with one prompt per line")
    prompts = read_prompts(options.prompts)
    check_images(pipeline, prompts)
    return Texts([prompts[i % len(prompts)] for i in range(num)])


def _captioned(pipeline: Any, options: Options, num: int, at_most: bool) -> Texts:
    assert options.data is not None
    rows, captions = open_captioned(options.data, call_options(pipeline))
    check_images(pipeline, captions)
    if options.prompts is not None and not (isinstance(options, FinetuneOptions) and options.preview_every):
        raise OptionError("prompts: not used, because the images have captions; leave it out")
    if len(rows) < num and not at_most:
        raise DataError(
            f"{options.data} holds {len(rows)} images, but calibration needs {num}; give more images or set "
            f"num_calibration_images to at most {len(rows)}"
        )
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(options.seed)).tolist()
    chosen = order[:num] if options.on_corrupt == "fail" else _readable(options.data, rows, order, num)
    if not chosen or (len(chosen) < num and not at_most):
        raise too_few_readable(options.data, len(chosen), len(rows), num)
    return Texts([captions[i] for i in chosen], rows_at(rows, chosen), chosen)


def _readable(source: str, rows: Sequence[Any], order: Sequence[int], num: int) -> list[int]:
    """Return the first `num` indices in `order` whose images can be read; log a warning for the others."""
    readable: list[int] = []
    for index in order:
        if len(readable) == num:
            break
        try:
            load_image(rows[index], row_name(rows[index], f"image {index} of {source}"))
        except DataError as error:
            _log.warning("skipped: %s", error)
        else:
            readable.append(index)
    return readable
