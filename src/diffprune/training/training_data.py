"""Open the data of a training: images, captioned images, or prompts to draw images by; every check comes first."""

from diffprune.calibration.calibration_set import GENERATED, Calibration, images_for
from diffprune.calibration.latent_cache import LatentCache
from diffprune.calibration.text_latents import training_latents
from diffprune.calibration.texts import Texts, open_texts
from diffprune.compute.device import pick_device
from diffprune.data.images import ImageSet, without_corrupt
from diffprune.errors import OptionError
from diffprune.options import FinetuneOptions, TrainingOptions
from diffprune.pipelines.diffusion import DiffusionProcess
from diffprune.runs.distributed import on_main_process, process_state
from diffprune.training.batches import check_conditions, check_held_out


def open_images(process: DiffusionProcess, options: TrainingOptions) -> ImageSet:
    """Return the training images, without the corrupt ones if `on_corrupt` is `skip`.

    Raises OptionError, DataError or ModelError, before it reads an image, if the model cannot be trained on them.
    """
    if options.data is None:
        raise OptionError("data: missing; give a folder, a parquet file, a dataset id or `digits`")
    images = images_for(process, options.data, options)
    check_conditions(process, images, options)
    if options.on_corrupt == "skip":
        images = without_corrupt(images, num_workers=options.num_workers)
        check_held_out(len(images), options)
    return images


def open_training_data(process: DiffusionProcess, options: FinetuneOptions) -> ImageSet | Texts:
    """Return what a model is finetuned on: images, or for a text-conditioned model texts with or without images.

    Raises OptionError, DataError or ModelError, before any work, if the model cannot be finetuned on them.
    """
    if options.data is None:
        raise OptionError(
            "data: missing; give a folder, a parquet file, a dataset id or `digits`; for text-conditioned models with "
            "captions, or `generated`"
        )
    if process.pipeline is None:
        if options.prompts is not None or options.data == GENERATED:
            raise OptionError("prompts and data `generated` serve text-conditioned models; give images")
        return open_images(process, options)
    if options.class_dropout:
        raise OptionError("class_dropout: the model is conditioned on text; leave it out")
    if options.preview_every and options.prompts is None:
        raise OptionError("prompts: missing; previews of a text-conditioned model are drawn by a file of prompts")
    own = options.data == GENERATED
    num = options.num_generated if own else options.steps * options.batch_size
    texts = open_texts(process, options, num, at_most=not own)
    check_conditions(process, texts, options)
    return texts


def load_training_data(
    process: DiffusionProcess, data: ImageSet | Texts, options: FinetuneOptions, latents: LatentCache | None = None
) -> ImageSet | Calibration:
    """Return images as they are, and the latents of texts. The main process makes latents that all ranks read.

    latents: cache of the latents; None caches nothing.
    """
    if isinstance(data, ImageSet):
        return data
    device = pick_device(options.device)
    if latents is not None and process_state(options.device).num_processes > 1:

        def make() -> None:
            training_latents(process, data, options, device, latents)

        on_main_process(make, options.device)
    return training_latents(process, data, options, device, latents)
