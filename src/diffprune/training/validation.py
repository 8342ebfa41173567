"""Validation error of the EMA weights on held-out images, and the best weights so far."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from diffprune.pipelines.predict import predict
from diffprune.runs.distributed import all_reduce_sum, process_state, rank_shard
from diffprune.training.batches import TrainingData
from diffprune.training.draws import validation_draws
from diffprune.training.losses import noise_errors


class Validation:
    """The held-out images, each with one noise and one timestep for the whole run; each rank holds its shard.

    All ranks run equally many batches, since the forward pass of a sharded model needs every rank. A rank with a
    shorter shard repeats its first batches without counting them.
    """

    def __init__(self, data: TrainingData, batch_size: int) -> None:
        indices, options = list(data.held_out_indices), data.options
        draws = validation_draws(len(indices), data.shape, data.process.scheduler, options)
        parts = [slice(start, start + batch_size) for start in range(0, len(indices), batch_size)]
        shard = list(rank_shard(parts, options.device))
        self.num_counted = len(shard)
        shard += parts[: -(-len(parts) // process_state(options.device).num_processes) - len(shard)]
        loaded = data.load(indices[part] for part in shard)
        self.num, self.device = len(indices), options.device
        self.batches = [
            data.add_noise(images, indices[part], draws[part]) for images, part in zip(loaded, shard, strict=True)
        ]

    @torch.no_grad()
    def error(self, model: nn.Module) -> float:
        """Return the mean squared error of a model's predictions over all images of all ranks, in float64."""
        total = torch.zeros((), dtype=torch.float64)
        for number, batch in enumerate(self.batches):
            output = predict(model, batch.noisy, batch.timesteps, batch.condition)
            if number < self.num_counted:
                total += noise_errors(output, batch.target).double().sum().cpu()
        return float(all_reduce_sum(total, self.device)) / self.num


class BestWeights:
    """The weights of the lowest validation error so far, in main memory and in checkpoints."""

    def __init__(self) -> None:
        self.step, self.error = 0, math.inf
        self.weights: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        """State in checkpoints, saved and restored by accelerate."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """State in checkpoints, saved and restored by accelerate."""
        vars(self).update(state)

    def offer(self, weights: list[Tensor], step: int, error: float) -> None:
        """Copy the weights if their error is the lowest so far."""
        if error < self.error:
            self.step, self.error = step, error
            self.weights = [value.detach().to("cpu", copy=True) for value in weights]
