"""One pass over an image set: everything that the metrics of sets need of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from diffprune.data.images import open_rows
from diffprune.errors import DataError
from diffprune.evaluation.inception import LAYERS, Inception, embed
from diffprune.evaluation.inputs import InceptionInputs, batch_of
from diffprune.evaluation.statistics import ARRAYS, ImageStatistics, Moments
from diffprune.options import InceptionOptions
from diffprune.progress import progress

TENSORFLOW = "tensorflow"
"""The way into the network of the metrics that torch-fidelity defines."""

KEPT = {"kid": "pool", "precision": "pool", "recall": "pool", "inception_score": "logits"}
"""Metrics that need every image's features, and the layer."""


@dataclass(frozen=True)
class Images:
    """The first `num` rows of an image set."""

    rows: Sequence[Any]
    num: int
    source: str


@dataclass(frozen=True)
class Features:
    """What one pass over an image set left.

    statistics: of `fid` and `sfid`, in the protocol of the chosen resize; None where neither was asked for.
    kept: layer -> float32 features (N, D) in the `tensorflow` protocol.
    """

    num_images: int
    statistics: ImageStatistics | None
    kept: Mapping[str, Tensor]


def open_set(source: str, num: int | None) -> Images:
    """The first `num` images of DATA (None: all), unread; raises DataError when there are fewer."""
    rows = open_rows(source)
    if num is not None and num > len(rows):
        raise DataError(f"{source} holds {len(rows)} images, num asks for {num}")
    return Images(rows, num or len(rows), source)


def gather(images: Images, metrics: Iterable[str], inception: Inception, options: InceptionOptions) -> Features:
    """Run the network over the images once per way into it, and keep what the metrics need.

    Memory: means and covariances do not grow with the number of images; `KEPT` metrics hold float32 features,
    8 kB an image (4 kB for logits). Raises DataError that names an image that cannot be read.
    """
    wanted = set(metrics)
    moments = {metric: Moments(LAYERS[layer]) for metric, (layer, *_) in ARRAYS.items() if metric in wanted}
    layers = sorted({layer for metric, layer in KEPT.items() if metric in wanted})
    kept = {layer: torch.empty(images.num, LAYERS[layer]) for layer in layers}
    resizes = dict.fromkeys([options.resize] * bool(moments) + [TENSORFLOW] * bool(kept))
    device = next(inception.network.parameters()).device
    start = 0
    with progress(f"features of {images.source}", images.num, "images") as advance:
        for batch in _batches(images, list(resizes), options):
            features = {resize: embed(inception, inputs.to(device)) for resize, inputs in batch.items()}
            for metric, found in moments.items():
                found.add(features[options.resize][ARRAYS[metric][0]].cpu())
            size = len(next(iter(batch.values())))
            for layer in layers:
                kept[layer][start : start + size] = features[TENSORFLOW][layer].cpu()
            start += size
            advance(size, "")
    statistics = ImageStatistics(
        {metric: found.statistics() for metric, found in moments.items()},
        images.num,
        inception.protocol(options.resize),
    )
    return Features(images.num, statistics if moments else None, kept)


def _batches(images: Images, resizes: Sequence[str], options: InceptionOptions) -> Iterable[dict[str, Tensor]]:
    loader = DataLoader(
        InceptionInputs(images.rows, images.num, images.source, resizes),
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        collate_fn=batch_of,
        generator=torch.Generator(),  # it would draw from the global one even where nothing is shuffled
    )
    for batch in loader:
        if isinstance(batch, str):
            raise DataError(batch)
        yield batch
