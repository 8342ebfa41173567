"""Time pruned candidates for a latency budget, alternating with the original on the device."""

from dataclasses import dataclass
from functools import partial

from diffusers.models.modeling_utils import ModelMixin

from diffprune.compute.autocast import autocast_forward
from diffprune.compute.cost import latency_ms
from diffprune.compute.device import pick_device
from diffprune.compute.placement import placed
from diffprune.errors import OptionError
from diffprune.options import PlanOptions
from diffprune.pipelines.denoiser_access import has_weights
from diffprune.runs.distributed import on_main_process

ROUNDS = 5
"""Alternating timings of the chosen model and the original for the reported latency."""

ROUNDS_OF_CANDIDATES = 2
"""Alternating timings of each candidate and the original."""


@dataclass(frozen=True)
class Latency:
    """Latency of a forward pass of the original and of a candidate, in milliseconds."""

    before_ms: float
    after_ms: float

    @property
    def share(self) -> float:
        """The latency of the candidate divided by the latency of the original."""
        return self.after_ms / self.before_ms


class Clock:
    """Timer of candidates. It alternates with the original, so that a machine that slows down slows both."""

    def __init__(self, original: ModelMixin, options: PlanOptions) -> None:
        self.original, self.options = original, options
        self.device = pick_device(options.device)

    def time(self, candidate: ModelMixin, rounds: int = ROUNDS_OF_CANDIDATES) -> Latency:
        """Return the shortest of several timings of both models, measured on the main process."""
        return on_main_process(partial(self._time, candidate, rounds), self.options.device)

    def limit(self) -> float:
        """Return the share of the original's latency that the budget allows."""
        if self.options.keep_latency is not None:
            return self.options.keep_latency
        assert self.options.max_latency_ms is not None
        whole = self.time(self.original, ROUNDS).before_ms
        if self.options.max_latency_ms >= whole:
            raise OptionError(
                f"max_latency_ms: got {self.options.max_latency_ms:g}, but the unpruned model takes {whole:.3g} ms on "
                f"{self.device} at batch size {self.options.latency_batch_size}; set a smaller value"
            )
        return self.options.max_latency_ms / whole

    def _time(self, candidate: ModelMixin, rounds: int) -> Latency:
        times = []
        for _ in range(rounds):
            pair = []
            for model in (self.original, candidate):
                with placed(model, self.device), autocast_forward(self.options, model, self.device):
                    pair.append(latency_ms(model, batch_size=self.options.latency_batch_size))
            times.append(pair)
        before, after = (min(pair[i] for pair in times) for i in range(2))
        return Latency(before, after)


def clock_for(denoiser: ModelMixin, options: PlanOptions) -> Clock | None:
    """Return the timer of a latency budget; None without a budget. Raises OptionError for a model without weights."""
    if options.keep_latency is None and options.max_latency_ms is None:
        return None
    if not has_weights(denoiser):
        raise OptionError(
            "a latency budget needs weights, but this is an architecture without weights; give a pretrained model"
        )
    return Clock(denoiser, options)
