"""Make the calibration set of a model: from images, from captioned images, or from images that the model draws."""

from diffusers.models.modeling_utils import ModelMixin

from diffprune.calibration.calibration_set import (
    GENERATED,
    Calibration,
    calibrate,
    draw_calibration_images,
    generate_images,
    images_for,
)
from diffprune.calibration.latent_cache import LatentCache
from diffprune.calibration.text_latents import calibrate_on_texts
from diffprune.compute.device import pick_device
from diffprune.errors import OptionError
from diffprune.options import CalibrationOptions
from diffprune.pipelines.diffusion import DiffusionProcess


def make_calibration(
    denoiser: ModelMixin,
    process: DiffusionProcess,
    options: CalibrationOptions,
    latents: LatentCache | None = None,
    *,
    at_most: bool = False,
) -> Calibration:
    """Return the calibration set of a denoiser, on the device of the options.

    Args:
        denoiser: draws the images if the data is `generated`.
        process: its diffusion process.
        options: the data, the number of images and of noises, the seed.
        latents: cache of the latents of a text-conditioned model; None caches nothing.
        at_most: if there are fewer than `num_calibration_images` images, use all of them.

    Raises:
        OptionError: missing data or prompts.
        ModelError: conditioning that is not supported.
        DataError: too few images, or images that cannot be read.
    """
    if options.data is None:
        raise OptionError("data: missing; give a folder, a parquet file, a dataset id, `digits`, or `generated`")
    device = pick_device(options.device)
    if process.pipeline is not None:
        return calibrate_on_texts(process, options, device, latents)
    if options.data == GENERATED:
        images = generate_images(denoiser, process, options, device)
    else:
        available = images_for(process, options.data, options)
        num = min(options.num_calibration_images, len(available)) if at_most else options.num_calibration_images
        images = draw_calibration_images(available, num, options.seed, on_corrupt=options.on_corrupt)
    return calibrate(images, process, options, device)
