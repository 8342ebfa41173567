"""From images and draws to the noisy batches of a step, on this process's device."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from diffprune.calibration.calibration_set import Calibration, NoisyBatch, noisy_batch
from diffprune.data.images import ImageSet, load_batches
from diffprune.errors import DataError, ModelError
from diffprune.options import FinetuneOptions, TrainingOptions
from diffprune.pipelines.conditioning import on_device
from diffprune.pipelines.denoiser_interface import PLAIN
from diffprune.pipelines.diffusion import UNCONDITIONAL, Conditioning, DiffusionProcess
from diffprune.training.draws import Draws, held_out, image_indices
from diffprune.training.fsdp import check_sharding
from diffprune.training.lora import check_peft


def check_conditions(process: DiffusionProcess, images: ImageSet | Calibration, options: TrainingOptions) -> None:
    """Raise ModelError, DataError or OptionError where a model cannot be trained so, before any work."""
    if isinstance(images, ImageSet) and process.classes is not None and images.labels is None:
        raise DataError(f"the model is class-conditional and the images of {images.source} bear no classes")
    check_sharding(options)
    if isinstance(options, FinetuneOptions) and options.lora_rank is not None:
        check_peft()
    if options.class_dropout and (process.classes is None or process.classes.null_class is None):
        raise ModelError("class_dropout: the model has no class that stands for none; leave it out")
    if len(images) <= options.num_validation_images:
        raise DataError(
            f"num_validation_images: {options.num_validation_images} of {len(images)} images held out leave none to "
            f"train on; give at most {len(images) - 1}"
        )


class Feed:
    """What a model is trained on: images, or latents of the model's own with what it is told of each."""

    def __init__(
        self,
        process: DiffusionProcess,
        images: ImageSet | Calibration,
        options: TrainingOptions,
        device: torch.device,
    ) -> None:
        check_conditions(process, images, options)
        self.process, self.images, self.options, self.device = process, images, options, device
        self.trained_on, self.held_out = held_out(len(images), options.num_validation_images, options.seed)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one noise."""
        return tuple(self.images.clean.shape[1:]) if isinstance(self.images, Calibration) else self.process.shape

    def loaded(self, indices: Iterator[list[int]]) -> Iterator[Tensor]:
        """Load images, or take latents, one batch per list of indices."""
        if isinstance(self.images, Calibration):
            latents = self.images.clean
            return (latents[mine] for mine in indices)
        return load_batches(self.images, indices, num_workers=self.options.num_workers)

    def indices(self, step: int) -> list[int]:
        """Images of the global batch of a step."""
        chosen = image_indices(len(self.trained_on), self.options.batch_size, self.options.seed, step)
        return [self.trained_on[i] for i in chosen]

    def training_batches(self, first_step: int, shards: list[slice]) -> Iterator[Tensor]:
        """What this process loads, one batch per forward pass, from `first_step` to the end."""
        steps = range(first_step, self.options.steps)
        return self.loaded(mine for step in steps for mine in map(self.indices(step).__getitem__, shards))

    def noisy(self, loaded: Tensor, indices: Sequence[int], draws: Draws) -> NoisyBatch:
        """What the model sees of loaded images and should answer; indices: which images they are."""
        clean = self._clean(loaded, draws.mirrored)
        noise, timesteps = draws.noise.to(self.device), draws.timesteps.to(self.device)
        condition = self._condition(indices, draws.unlabelled)
        convention = self.images.convention if isinstance(self.images, Calibration) else PLAIN
        return noisy_batch(self.process.scheduler, clean, noise, timesteps, condition, convention)

    def _clean(self, loaded: Tensor, mirrored: Tensor) -> Tensor:
        """x_0 of what was loaded: images, half of them mirrored, are encoded; latents are taken as they are."""
        if isinstance(self.images, Calibration):
            return loaded.to(self.device)
        images = torch.where(mirrored[:, None, None, None], loaded.flip(-1), loaded).to(self.device)
        return self.process.encode(images)

    def _condition(self, indices: Sequence[int], unlabelled: Tensor) -> Conditioning:
        """What the model is told of these images."""
        if isinstance(self.images, Calibration):
            return on_device(self.images.conditioning(indices), self.device)
        classes, labels = self.process.classes, self.images.labels
        if classes is None or labels is None:
            return UNCONDITIONAL
        told = torch.tensor([labels[i] for i in indices])
        if classes.null_class is not None:
            told[unlabelled] = classes.null_class
        with torch.no_grad():
            return classes.embed(told.to(self.device))
