"""Validation: the noise error of the EMA weights on held-out images, and the best weights by it."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from diffprune.pipelines.predict import predict
from diffprune.runs.distributed import all_reduce_sum, process_state, rank_shard
from diffprune.training.batches import Feed
from diffprune.training.draws import validation_draws
from diffprune.training.losses import noise_errors


class Validation:
    """The held-out images, each with one noise and one timestep for the whole run; each process holds its share.

    All have as many batches, since a sharded model only answers to all processes at once: where a share is shorter, the
    first batch comes again and is not counted.
    """

    def __init__(self, feed: Feed, batch_size: int) -> None:
        indices, options = list(feed.held_out), feed.options
        draws = validation_draws(len(indices), feed.shape, feed.process.scheduler, options)
        parts = [slice(start, start + batch_size) for start in range(0, len(indices), batch_size)]
        mine = list(rank_shard(parts, options.device))
        self.num_counted = len(mine)
        mine += parts[: -(-len(parts) // process_state(options.device).num_processes) - len(mine)]
        loaded = feed.loaded(indices[part] for part in mine)
        self.num, self.device = len(indices), options.device
        self.batches = [
            feed.noisy(images, indices[part], draws[part]) for images, part in zip(loaded, mine, strict=True)
        ]

    @torch.no_grad()
    def error(self, model: nn.Module) -> float:
        """Mean squared error of what a model predicts, over all images, in float64."""
        total = torch.zeros((), dtype=torch.float64)
        for number, batch in enumerate(self.batches):
            output = predict(model, batch.noisy, batch.timesteps, batch.condition)
            if number < self.num_counted:
                total += noise_errors(output, batch.target).double().sum().cpu()
        return float(all_reduce_sum(total, self.device)) / self.num


class Best:
    """The weights of the lowest validation error so far; they lie in main memory and in the checkpoints."""

    def __init__(self) -> None:
        self.step, self.error = 0, math.inf
        self.weights: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        """For accelerate."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """For accelerate."""
        vars(self).update(state)

    def offer(self, weights: list[Tensor], step: int, error: float) -> None:
        """Keep a copy of the weights when their error is the lowest."""
        if error < self.error:
            self.step, self.error = step, error
            self.weights = [value.detach().to("cpu", copy=True) for value in weights]
