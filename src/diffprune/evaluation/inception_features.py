"""One pass over an image set: everything that the metrics of sets need of it."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from diffprune.data.images import load_image, open_rows, row_name
from diffprune.errors import DataError
from diffprune.evaluation.feature_statistics import ARRAYS, ImageStatistics, Moments
from diffprune.evaluation.image_preparation import Preparation
from diffprune.evaluation.inception import LAYERS, Inception, embed
from diffprune.evaluation.inception_inputs import InceptionInputs, InputBatch, batch_of
from diffprune.options import InceptionOptions
from diffprune.runs.accumulator import Accumulator
from diffprune.runs.distributed import rank_shard

_log = logging.getLogger(__name__)

TENSORFLOW = "tensorflow"
"""The way into the network of the metrics that torch-fidelity defines."""

KEPT = {"kid": "pool", "precision": "pool", "recall": "pool", "inception_score": "logits"}
"""Metrics that need every image's features, and the layer."""


@dataclass(frozen=True)
class Images:
    """The first `num` rows of an image set, and how each is prepared."""

    rows: Sequence[Any]
    num: int
    source: str
    prepare: Preparation


@dataclass(frozen=True)
class Features:
    """What one pass over an image set left.

    num_images: those that could be read; num_corrupt: the others. statistics: of `fid` and `sfid`, in the protocol of
    the chosen resize; None where neither was asked for. kept: layer -> float32 features (N, D) in the `tensorflow`
    protocol.
    """

    num_images: int
    num_corrupt: int
    statistics: ImageStatistics | None
    kept: Mapping[str, Tensor]


def open_set(source: str, num: int | None, prepare: Preparation) -> Images:
    """The first `num` images of DATA (None: all), of which the first is looked at.

    Raises DataError when there are fewer, or when the first does not suit the preparation.
    """
    rows = open_rows(source)
    if num is not None and num > len(rows):
        raise DataError(f"{source} holds {len(rows)} images, num asks for {num}")
    name = row_name(rows[0], f"image 0 of {source}")
    try:
        first = load_image(rows[0], name)
    except DataError:  # the pass over all of them says so, or leaves it out
        return Images(rows, num or len(rows), source, prepare)
    prepare(first, name)
    return Images(rows, num or len(rows), source, prepare)


def gather(
    images: Images,
    metrics: Iterable[str],
    inception: Inception,
    options: InceptionOptions,
    sums: Accumulator | None = None,
) -> Features:
    """Run the network over the images once per way into it, and keep what the metrics need.

    Several processes share the batches, which are cut by index alone, and all of them return the same. sums: where all
    of it is kept meanwhile; None: nowhere.
    Memory: means and covariances do not grow with the number of images; `KEPT` metrics hold float32 features,
    8 kB an image (4 kB for logits). Raises DataError that names an image that cannot be read, unless those are to be
    left out, and when fewer than two can be.
    """
    wanted = set(metrics)
    sums = sums or Accumulator(options.device)
    moments = {
        metric: Moments(metric, LAYERS[layer], sums) for metric, (layer, *_) in ARRAYS.items() if metric in wanted
    }
    layers = sorted({layer for metric, layer in KEPT.items() if metric in wanted})
    kept = {layer: sums.zeros(layer, images.num, LAYERS[layer], dtype=torch.float32) for layer in layers}
    readable = sums.zeros("readable", images.num, dtype=torch.int32)
    resizes = dict.fromkeys([options.resize] * bool(moments) + [TENSORFLOW] * bool(kept))
    device = next(inception.network.parameters()).device

    for batch in _batches(images, list(resizes), options, sums):
        features = {resize: embed(inception, inputs.to(device)) for resize, inputs in batch.inputs.items()}
        for metric, found in moments.items():
            found.add(features[options.resize][ARRAYS[metric][0]].cpu())
        for layer in layers:
            kept[layer][batch.indices] = features[TENSORFLOW][layer].cpu()
        readable[batch.indices] = 1
    readable = sums.total("readable")
    num_images = int(readable.sum())
    if num_images < min(2, images.num):
        raise DataError(f"{images.source}: {num_images} of {images.num} images can be read")
    statistics = ImageStatistics(
        {metric: found.statistics(num_images) for metric, found in moments.items()},
        num_images,
        inception.protocol(options.resize, images.prepare.fact),
        {"num_corrupt": images.num - num_images},
    )
    features_of_all = {layer: sums.total(layer) for layer in layers}
    if num_images < images.num:
        features_of_all = {layer: some[readable.bool()] for layer, some in features_of_all.items()}
    return Features(num_images, images.num - num_images, statistics if moments else None, features_of_all)


def _batches(
    images: Images, resizes: Sequence[str], options: InceptionOptions, sums: Accumulator
) -> Iterator[InputBatch]:
    """This process's batches that hold any image to look at and are not in the sums; corrupt images are named."""
    batches = [
        range(start, min(start + options.batch_size, images.num)) for start in range(0, images.num, options.batch_size)
    ]
    loader = DataLoader(
        InceptionInputs(images.rows, images.source, images.prepare, resizes),
        batch_sampler=[list(batch) for batch in rank_shard(batches[sums.position :], options.device)],
        num_workers=options.num_workers,
        collate_fn=batch_of,
        generator=torch.Generator(),  # it would draw from the global one even where nothing is shuffled
    )
    prepared = iter(loader)
    for _ in sums.iterate(batches, f"features of {images.source}", "batches"):
        batch = next(prepared)
        for wrong in batch.unusable:
            if not wrong.corrupt or options.on_corrupt == "fail":
                sums.error = DataError(wrong.text)
                break
            _log.warning("left out: %s", wrong.text)
        if batch.indices and sums.error is None:
            yield batch
