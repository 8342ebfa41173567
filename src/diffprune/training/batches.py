"""Load training images or latents and add noise: the batches of a step, on this rank's device."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from diffprune.calibration.calibration_set import Calibration, NoisyBatch, noisy_batch
from diffprune.calibration.texts import Texts
from diffprune.data.images import ImageSet, load_batches
from diffprune.errors import DataError, ModelError
from diffprune.options import FinetuneOptions, TrainingOptions
from diffprune.pipelines.conditioning import on_device
from diffprune.pipelines.denoiser_interface import PLAIN
from diffprune.pipelines.diffusion import UNCONDITIONAL, Conditioning, DiffusionProcess
from diffprune.training.draws import Draws, image_indices, split_held_out
from diffprune.training.fsdp import check_sharding
from diffprune.training.lora import check_peft


def check_conditions(process: DiffusionProcess, images: ImageSet | Texts, options: TrainingOptions) -> None:
    """Check before any work that these images can train the model with these options.

    Raises ModelError, DataError or OptionError otherwise.
    """
    if isinstance(images, ImageSet) and process.classes is not None and images.labels is None:
        raise DataError(
            f"the model is class-conditional, but the images of {images.source} have no class labels; give images "
            "with labels"
        )
    check_sharding(options)
    if isinstance(options, FinetuneOptions) and options.lora_rank is not None:
        check_peft()
    if options.class_dropout and (process.classes is None or process.classes.null_class is None):
        raise ModelError("class_dropout: the model has no null class; leave the option out")
    check_held_out(len(images), options)


def check_held_out(num_images: int, options: TrainingOptions) -> None:
    """Raise DataError if the held-out images leave none to train on."""
    if num_images <= options.num_validation_images:
        raise DataError(
            f"num_validation_images: got {options.num_validation_images} of {num_images} images, which leaves none to "
            f"train on; give at most {num_images - 1}"
        )


class TrainingData:
    """Training data of one run: images, or latents of the model with the conditioning of each.

    train_indices, held_out_indices: images for training and for validation.
    """

    def __init__(
        self,
        process: DiffusionProcess,
        images: ImageSet | Calibration,
        options: TrainingOptions,
        device: torch.device,
    ) -> None:
        self.process, self.images, self.options, self.device = process, images, options, device
        self.train_indices, self.held_out_indices = split_held_out(
            len(images), options.num_validation_images, options.seed
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the noise of one image: (C, H, W)."""
        return tuple(self.images.clean.shape[1:]) if isinstance(self.images, Calibration) else self.process.shape

    def load(self, indices: Iterator[list[int]]) -> Iterator[Tensor]:
        """Yield one batch of images or latents per list of indices."""
        if isinstance(self.images, Calibration):
            latents = self.images.clean
            return (latents[batch] for batch in indices)
        return load_batches(self.images, indices, num_workers=self.options.num_workers)

    def indices(self, step: int) -> list[int]:
        """Return the image indices of the global batch of a step."""
        positions = image_indices(len(self.train_indices), self.options.batch_size, self.options.seed, step)
        return [self.train_indices[i] for i in positions]

    def training_batches(self, first_step: int, shards: list[slice]) -> Iterator[Tensor]:
        """Yield the batches of this rank, one per forward pass, from `first_step` to the last step."""
        steps = range(first_step, self.options.steps)
        return self.load(batch for step in steps for batch in map(self.indices(step).__getitem__, shards))

    def add_noise(self, loaded: Tensor, indices: Sequence[int], draws: Draws) -> NoisyBatch:
        """Return the noisy batch of loaded images with its conditioning and target.

        indices: the image indices of `loaded`, in the same order.
        """
        clean = self._encode(loaded, draws.mirrored)
        noise, timesteps = draws.noise.to(self.device), draws.timesteps.to(self.device)
        condition = self._conditioning(indices, draws.unlabeled)
        convention = self.images.convention if isinstance(self.images, Calibration) else PLAIN
        return noisy_batch(self.process.scheduler, clean, noise, timesteps, condition, convention)

    def _encode(self, loaded: Tensor, mirrored: Tensor) -> Tensor:
        """Return x_0: images are mirrored where drawn and encoded; latents are used unchanged."""
        if isinstance(self.images, Calibration):
            return loaded.to(self.device)
        images = torch.where(mirrored[:, None, None, None], loaded.flip(-1), loaded).to(self.device)
        return self.process.encode(images)

    def _conditioning(self, indices: Sequence[int], unlabeled: Tensor) -> Conditioning:
        """Return the conditioning of these images; unlabeled ones get the null class."""
        if isinstance(self.images, Calibration):
            return on_device(self.images.conditioning(indices), self.device)
        classes, labels = self.process.classes, self.images.labels
        if classes is None or labels is None:
            return UNCONDITIONAL
        class_labels = torch.tensor([labels[i] for i in indices])
        if classes.null_class is not None:
            class_labels[unlabeled] = classes.null_class
        with torch.no_grad():
            return classes.embed(class_labels.to(self.device))
