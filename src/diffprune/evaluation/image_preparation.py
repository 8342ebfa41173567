"""Preprocessing of images before the resize to Inception's input: none, or a preset, equal on both sides."""

from dataclasses import dataclass

from PIL import Image

from diffprune.data.presets import Preprocessing, preprocessing_of, read_preprocessing
from diffprune.errors import DataError
from diffprune.evaluation.protocol import NATIVE, Protocol
from diffprune.options import InceptionOptions


@dataclass(frozen=True)
class Preparation:
    """Convert an image to RGB and apply a preprocessing; None leaves it at native size.

    from_statistics: the preprocessing was read from a statistics file and not requested by an option. Only images of
    its output size are accepted then, such as images that a model sampled at that size.
    """

    preprocessing: Preprocessing | None = None
    from_statistics: bool = False

    @property
    def description(self) -> str:
        """The entry `images` of a protocol."""
        return NATIVE if self.preprocessing is None else f"{self.preprocessing}, RGB"

    def __call__(self, image: Image.Image, name: str) -> Image.Image:
        """Return the prepared image, RGB; raises DataError that starts with `name` when its size is not supported."""
        image = image.convert("RGB")
        if self.preprocessing is None:
            return image
        if self.from_statistics and (image.height, image.width) != self.preprocessing.size:
            raise DataError(
                f"{name} has {image.height}x{image.width} pixels, the statistics are of images prepared as "
                f"{self.preprocessing}; give images of that size, or set preset (or size, crop, fit and filter) to "
                "prepare them in the same way"
            )
        return self.preprocessing(image, name)


def preparation_of(options: InceptionOptions, statistics: Protocol | None = None) -> Preparation:
    """Return the preparation that the options request; without one, the preparation of the statistics.

    statistics: protocol of a statistics file; None: there is no file. Raises DataError when the statistics state a
    preprocessing that this version does not know.
    """
    if options.preset is not None or options.size is not None:
        return Preparation(preprocessing_of(options))
    if statistics is None or statistics.images == NATIVE:
        return Preparation()
    try:
        preprocessing = read_preprocessing(statistics.images.removesuffix(", RGB"))
    except ValueError as error:
        raise DataError(f"the protocol of the statistics is not supported: {error}; compute them again") from error
    return Preparation(preprocessing, from_statistics=True)
