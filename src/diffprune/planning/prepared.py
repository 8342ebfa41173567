"""A checked model with its groups, fingerprint, cost and calibration set, each computed once per command."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import nn

from diffprune.artifact.preconditions import check_sound
from diffprune.calibration.calibration_set import Calibration
from diffprune.calibration.latent_cache import LatentCache
from diffprune.calibration.make_calibration import make_calibration
from diffprune.compute.cost import Cost, cost_of
from diffprune.groups import Group, find_groups
from diffprune.options import CalibrationOptions, Kind
from diffprune.pipelines.denoiser_access import denoiser_of
from diffprune.pipelines.diffusion import DiffusionProcess, process_of
from diffprune.planning.fingerprints import fingerprint

Model = DiffusionPipeline | ModelMixin
"""A pipeline, or a bare denoiser."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A checked model, and everything that planning and pruning derive from it; made by `prepare`.

    A command makes one and passes it on. Groups, fingerprint, cost and calibration set are computed on first use and
    cached.

    Attributes:
        model: the pipeline, or the bare denoiser.
        denoiser: the denoiser of the model.
        kinds: kinds of units of `groups`; None for all kinds except whole blocks.
        calibrating: options of the calibration set; None if there is none.
        latents: cache of the latents of a text-conditioned model; None caches nothing.
        at_most: if there are fewer than `num_calibration_images` images, use all of them.
    """

    model: Model
    denoiser: ModelMixin
    kinds: Collection[Kind] | None = None
    calibrating: CalibrationOptions | None = None
    latents: LatentCache | None = None
    at_most: bool = False

    @property
    def is_bare(self) -> bool:
        """Whether the model is a denoiser without a pipeline, and so without a noise schedule."""
        return isinstance(self.model, nn.Module)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The groups of the denoiser, by one trace of its dependency graph. Raises ModelError if it has none."""
        return find_groups(self.denoiser, kinds=self.kinds)

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprint of the denoiser's architecture."""
        return fingerprint(self.denoiser)

    @cached_property
    def cost(self) -> Cost:
        """Parameters and MACs of the denoiser before pruning."""
        return cost_of(self.denoiser)

    @cached_property
    def process(self) -> DiffusionProcess | None:
        """The diffusion process of the pipeline; None for a bare denoiser. Raises ModelError if not supported."""
        return None if self.is_bare else process_of(self.model)

    @cached_property
    def calibration(self) -> Calibration | None:
        """The calibration set; None without `calibrating`. Raises as `make_calibration`."""
        if self.calibrating is None:
            return None
        process = self.process or process_of(self.model)  # which raises for a bare denoiser
        return make_calibration(self.denoiser, process, self.calibrating, self.latents, at_most=self.at_most)


def prepare(
    model: Model,
    kinds: Collection[Kind] | None = None,
    *,
    calibrating: CalibrationOptions | None = None,
    latents: LatentCache | None = None,
    at_most: bool = False,
) -> Prepared:
    """Check that a model can be pruned, and return it as `Prepared`; the arguments are its attributes.

    Raises ModelError that lists every reason why the model cannot be pruned.
    """
    denoiser = denoiser_of(model)
    check_sound(denoiser)
    return Prepared(model, denoiser, kinds, calibrating, latents, at_most)
