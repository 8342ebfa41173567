"""Run Inception over an image set once, and return the features and statistics that the metrics need."""

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
from diffprune.evaluation.inception_inputs import InceptionInputs, InputBatch, collate_inputs
from diffprune.options import InceptionOptions
from diffprune.runs.accumulator import Accumulator
from diffprune.runs.distributed import rank_shard

_log = logging.getLogger(__name__)

TENSORFLOW = "tensorflow"
"""The resize of the metrics that torch-fidelity defines."""

FEATURE_LAYERS = {"kid": "pool", "precision": "pool", "recall": "pool", "inception_score": "logits"}
"""Metrics that need the features of every image -> layer."""


@dataclass(frozen=True)
class SelectedImages:
    """The first `num` rows of an image set, and the preparation of each."""

    rows: Sequence[Any]
    num: int
    source: str
    prepare: Preparation


@dataclass(frozen=True)
class ImageSetFeatures:
    """Features and statistics of an image set.

    num_images: readable images; num_corrupt: skipped images. statistics: mean and covariance for `fid` and `sfid` by
    the requested resize; None without these metrics. by_layer: layer -> float32 features (N, D) by the `tensorflow`
    resize.
    """

    num_images: int
    num_corrupt: int
    statistics: ImageStatistics | None
    by_layer: Mapping[str, Tensor]


def open_image_set(source: str, num: int | None, prepare: Preparation) -> SelectedImages:
    """Select the first `num` images of DATA (None: all), and check the first one.

    Raises DataError when there are fewer images, or when the preparation does not support the size of the first.
    """
    rows = open_rows(source)
    if num is not None and num > len(rows):
        raise DataError(f"{source} holds {len(rows)} images, but num is {num}; set num to at most {len(rows)}")
    name = row_name(rows[0], f"image 0 of {source}")
    try:
        first = load_image(rows[0], name)
    except DataError:  # extract_features raises it, or skips the image
        return SelectedImages(rows, num or len(rows), source, prepare)
    prepare(first, name)
    return SelectedImages(rows, num or len(rows), source, prepare)


def extract_features(
    images: SelectedImages,
    metrics: Iterable[str],
    inception: Inception,
    options: InceptionOptions,
    sums: Accumulator | None = None,
) -> ImageSetFeatures:
    """Run the network over the images once per resize, and return what the metrics need.

    Ranks share the batches, which depend on the index only, and all ranks return the same result. sums: accumulator
    that caches the running sums on disk; None: no cache. Memory: means and covariances do not grow with the number of
    images; metrics of `FEATURE_LAYERS` need 8 kB per image (4 kB for logits). Raises DataError that names an
    unreadable image (unless `on_corrupt` is skip), and when fewer than two images are readable.
    """
    wanted = set(metrics)
    sums = sums or Accumulator(options.device)
    moments = {
        metric: Moments(metric, LAYERS[layer], sums) for metric, (layer, *_) in ARRAYS.items() if metric in wanted
    }
    layers = sorted({layer for metric, layer in FEATURE_LAYERS.items() if metric in wanted})
    by_layer = {layer: sums.zeros(layer, images.num, LAYERS[layer], dtype=torch.float32) for layer in layers}
    readable = sums.zeros("readable", images.num, dtype=torch.int32)
    resizes = dict.fromkeys([options.resize] * bool(moments) + [TENSORFLOW] * bool(by_layer))
    device = next(inception.network.parameters()).device

    for batch in _batches(images, list(resizes), options, sums):
        features = {resize: embed(inception, inputs.to(device)) for resize, inputs in batch.inputs.items()}
        for metric, running in moments.items():
            running.add(features[options.resize][ARRAYS[metric][0]].cpu())
        for layer in layers:
            by_layer[layer][batch.indices] = features[TENSORFLOW][layer].cpu()
        readable[batch.indices] = 1
    readable = sums.total("readable")
    num_images = int(readable.sum())
    if num_images < min(2, images.num):
        raise DataError(f"{images.source}: {num_images} of {images.num} images are readable; metrics need at least 2")
    statistics = ImageStatistics(
        {metric: running.statistics(num_images) for metric, running in moments.items()},
        num_images,
        inception.protocol(options.resize, images.prepare.description),
        {"num_corrupt": images.num - num_images},
    )
    features_of_all = {layer: sums.total(layer) for layer in layers}
    if num_images < images.num:
        features_of_all = {layer: features[readable.bool()] for layer, features in features_of_all.items()}
    return ImageSetFeatures(num_images, images.num - num_images, statistics if moments else None, features_of_all)


def _batches(
    images: SelectedImages, resizes: Sequence[str], options: InceptionOptions, sums: Accumulator
) -> Iterator[InputBatch]:
    """Yield this rank's batches that are not in the sums yet; warn about skipped images."""
    batches = [
        range(start, min(start + options.batch_size, images.num)) for start in range(0, images.num, options.batch_size)
    ]
    loader = DataLoader(
        InceptionInputs(images.rows, images.source, images.prepare, resizes),
        batch_sampler=[list(batch) for batch in rank_shard(batches[sums.position :], options.device)],
        num_workers=options.num_workers,
        collate_fn=collate_inputs,
        generator=torch.Generator(),  # the default draws from the global generator even without shuffling
    )
    prepared = iter(loader)
    for _ in sums.iterate(batches, f"features of {images.source}", "batches"):
        batch = next(prepared)
        for image in batch.rejected:
            if not image.corrupt or options.on_corrupt == "fail":
                sums.error = DataError(image.reason)
                break
            _log.warning("skipped: %s", image.reason)
        if batch.indices and sums.error is None:
            yield batch
