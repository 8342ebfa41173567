"""Public functions that draw, compare and prepare images."""

import os
from pathlib import Path
from typing import Any

from PIL import Image

from diffprune.api.arguments import existing, model_source
from diffprune.api.keyword_options import with_options
from diffprune.api.results import Results
from diffprune.data.memory_images import data_source
from diffprune.evaluation.feature_statistics import ImageStatistics, read_statistics
from diffprune.options import DataOptions, EvaluateOptions, SampleOptions, StatsOptions
from diffprune.sampling.image_folder import image_path
from diffprune.stages.data_stage import data_stage
from diffprune.stages.evaluate_stage import evaluate_stage
from diffprune.stages.sample_stage import sample_images, sample_stage
from diffprune.stages.stats_stage import make_statistics, stats_stage

Source = str | os.PathLike[str]


@with_options(options=SampleOptions)
def sample(
    model: Any, out: Source | None = None, *, options: SampleOptions, overwrite: bool = False
) -> list[Path] | list[Image.Image]:
    """Draw images of a pipeline; return them, or their paths in the folder `out`, in the order of the image index.

    model: a pipeline, or its folder, hub id or built-in name. Image i depends only on the model, the options and i. Of
    a video, the first frame is returned. out: folder for the images; an interrupted call of the same model and options
    resumes. None writes nothing and returns PIL images, equal to those of the folder.
    Raises FolderError if the folder holds anything else.
    """
    if out is None:
        return sample_images(model_source(model), options)
    folder = Path(out)
    sample_stage(model_source(model), options, folder, existing=existing(overwrite))
    return [image_path(folder, i) for i in range(options.num_images)]


@with_options(options=EvaluateOptions)
def evaluate(
    images: Any, reference: Any = None, *, options: EvaluateOptions, out: Source | None = None, overwrite: bool = False
) -> Results:
    """Return the value of each metric of `images` against `reference`, by name.

    images, reference: a folder, or images in memory (a list of PIL images or paths, a tensor (N, C, H, W) in [-1, 1],
    a 🤗 or torch data set). ssim, mse, psnr and lpips compare image i with image i; in a folder, i is the number at the
    end of a file name. frechet_distance, fid, sfid, kid, precision and recall compare two sets. A set may also be a
    parquet file, a dataset id or `digits`; for fid and sfid also a statistics file (.npz). inception_score and
    clip_score take no reference. `protocol` describes, per metric of a network, how its value was computed. Values are
    comparable if the hashes of their protocols are equal. out: folder for run.json with the values.
    Raises DataError if images are missing, unreadable, unpaired, too few or of another protocol.
    """
    compared = None if reference is None else data_source(reference)
    place = None if out is None else Path(out)
    return Results(evaluate_stage(data_source(images), compared, options, place, existing=existing(overwrite)))


@with_options(options=StatsOptions)
def stats(images: Any, options: StatsOptions, *, out: Source | None = None, overwrite: bool = False) -> ImageStatistics:
    """Return mean and covariance of the Inception features of an image set; `save(path)` writes them as .npz.

    images: a folder, parquet file, dataset id, `digits`, or images in memory. out: .npz file to write; an interrupted
    call with `out` resumes. Raises DataError if images are missing, unreadable or fewer than two, ModelError if the
    weights of the network cannot be downloaded.
    """
    if out is None:
        return make_statistics(data_source(images), options)
    stats_stage(data_source(images), options, Path(out), existing=existing(overwrite))
    return read_statistics(Path(out))


@with_options(options=DataOptions)
def prepare_data(
    name: str, archive: Source | None = None, *, options: DataOptions, out: Source, overwrite: bool = False
) -> Results:
    """Extract a published data set into a folder of images or of parquet files; return the number of images.

    name: cifar10, cifar100, celeba, lsun-church, lsun-bedroom or ffhq. archive: file, folder or URL of the archive;
    None downloads the official archive. An interrupted call resumes. Raises OptionError or DataError.
    """
    place = None if archive is None else os.fspath(archive)
    return Results(data_stage(name, place, options, Path(out), existing=existing(overwrite)))
