"""What happens to an image before it is resized for the network: nothing, or a preset, on both sides alike."""

from dataclasses import dataclass

from PIL import Image

from diffprune.data.presets import Preprocessing, preprocessing_of, read_preprocessing
from diffprune.errors import DataError
from diffprune.evaluation.protocol import NATIVE, Protocol
from diffprune.options import InceptionOptions


@dataclass(frozen=True)
class Preparation:
    """How images are prepared; by None at native size.

    taken_over: it is that of statistics, and nobody asked to prepare images so: only those pass that it leaves as
    they are, such as images that a model drew at its size.
    """

    by: Preprocessing | None = None
    taken_over: bool = False

    @property
    def fact(self) -> str:
        """What a protocol says of it."""
        return NATIVE if self.by is None else f"{self.by}, RGB"

    def __call__(self, image: Image.Image, what: str) -> Image.Image:
        """The prepared image, RGB; raises DataError that names `what` when it does not suit."""
        image = image.convert("RGB")
        if self.by is None:
            return image
        if self.taken_over and (image.height, image.width) != self.by.size:
            raise DataError(
                f"{what} has {image.height}x{image.width} pixels, the statistics are of images prepared as {self.by}: "
                "give images of that size, or the same preset (or size, crop, fit and filter) to prepare these alike"
            )
        return self.by(image, what)


def preparation_of(options: InceptionOptions, statistics: Protocol | None = None) -> Preparation:
    """What the options ask for; where they ask for nothing, what statistics say (None: there are none).

    Raises DataError for statistics of a preparation that this version does not know.
    """
    if options.preset is not None or options.size is not None:
        return Preparation(preprocessing_of(options))
    if statistics is None or statistics.images == NATIVE:
        return Preparation()
    try:
        return Preparation(read_preprocessing(statistics.images.removesuffix(", RGB")), taken_over=True)
    except ValueError as error:
        raise DataError(f"the statistics say that {error}; make them again") from error
